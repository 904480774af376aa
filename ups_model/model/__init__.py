"""UPS: tokenizer, encoder, decoder, vocabulary, decoding (paper section 3)."""
