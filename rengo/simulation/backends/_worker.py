"""One process of the backend ``processes``.

``python -m rengo.simulation.backends._worker FD`` gets what it needs, and its orders, by the socket
FD, which its parent made with it.
"""

import sys

from rengo.simulation.backends._work import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
