"""From text to tokens: the tokenizer, and for a language model the chunks that it learns from."""
