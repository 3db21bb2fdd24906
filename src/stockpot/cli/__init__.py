"""The command line: words → one call of the public function of the same name."""
