"""Docent: crawl, split, index, synthesize, finetune, deploy, evaluate, serve."""
