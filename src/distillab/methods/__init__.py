"""One distillation method a file; the file's stem is the method's name."""
