"""The same controls inside other trainers. They import the core alone, and nothing imports them."""
