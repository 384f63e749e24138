"""Prompts from outside: files of text, JSON and tables, data sets and templates."""
