"""TensorBoard, Weights & Biases and MLflow: they show the numbers of runs, and change nothing about them."""
