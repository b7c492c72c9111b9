//! GPT and MBR as far as capture and safe restore need them.
