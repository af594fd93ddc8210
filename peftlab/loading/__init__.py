"""Loading of what a recipe names: data, encoded examples, base model and tokenizer, and the attached method."""
