"""What guides a student: a frozen teacher, live or remembered."""
