"""Networks: generators, classifiers, their LoRA adapters, and where they come from."""
