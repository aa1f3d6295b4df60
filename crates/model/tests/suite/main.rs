//! Tests of whole models: golden logits, reference figures, streams, bad input, properties.

mod backward;
mod bad_input;
mod common;
mod edited;
mod golden;
mod images;
mod judging;
mod kv;
mod prompts;
mod properties;
mod reduced;
mod reduced_prompts;
mod repeat;
mod scan;
mod slow;
mod statistics;
mod streaming;
