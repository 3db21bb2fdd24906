"""One function for each thing a person does; only wiring, the work is done on the floors below."""
