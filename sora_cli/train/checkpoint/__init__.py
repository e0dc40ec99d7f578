"""Everything that makes a resumed run byte-equal."""
