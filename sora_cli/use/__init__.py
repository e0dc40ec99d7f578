"""Use of a trained model: answers to rows without labels, chat, text generation, benchmarks."""
