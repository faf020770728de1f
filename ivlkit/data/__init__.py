"""A JSONL row → tensors: records, media, tiling, conversation, encode, mixture, doctor, packing, collate."""
