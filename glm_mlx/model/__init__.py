"""The decoder, its rotary embedding, its cache: ids in, logits out; knows no text."""
