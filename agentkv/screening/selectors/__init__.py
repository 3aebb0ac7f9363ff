"""The rules that choose the repaired rows, one file each; `registry` finds them by name."""
