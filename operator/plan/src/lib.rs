//! From what was read to what is wanted: objects, steps, conditions. Pure.
