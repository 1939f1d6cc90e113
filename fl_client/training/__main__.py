"""``python -m fl_client.training`` is the training process."""

from fl_client.training.process import main

if __name__ == "__main__":
    raise SystemExit(main())
