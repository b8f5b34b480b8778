"""What a model is asked when it is measured."""
