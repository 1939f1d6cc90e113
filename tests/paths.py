"""Names that a folder may have, each of which some program's syntax reads otherwise."""

from __future__ import annotations

# accents, another script and an emoji; what URLs, configuration files, shells and units give a
# meaning to
LEGAL = (
    "José",
    "李雷",
    "🍓",
    "a b",
    " a ",
    "a%20b",
    "a%sb",
    "a?b",
    "a#b",
    "a:b",
    "a,b",
    "a=b",
    "a&b;c",
    "a[b]*{c}",
    "$HOME",
    "~a",
    "-a",
    "it's",
    'a"b',
    "a\\b",
    "a\\u0041b",
)
# no program's configuration can name these
REFUSED = ("a\nb", "a\rb", "a\tb", "a\x1b[1mb", "a\x7fb", "a\x85b", "a\udce9b")
# as much as one name can hold of it, for a site that really starts there
NASTIEST = 'it\'s 李é "a\\b" %20?#,=$HOME [*]:🍓'
