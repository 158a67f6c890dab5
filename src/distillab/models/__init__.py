"""The six classic models, models from elsewhere, their weights and the features of their layers."""
