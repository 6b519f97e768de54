//! The reference programs: what makes WayInfer's fixtures and goldens with ggml, and measures llama.cpp as its peer.
//!
//! ```text
//! ffi        ggml and llama.cpp behind small safe types; the only unsafe code
//! error      what can go wrong, by name
//! capture    every node of a run, its logits and its greedy continuation
//! formats    decoded values, quantised activations and dots of each block format
//! quantize   a float GGUF to another file type
//! encode     floats as a format's blocks
//! perplexity how well a model foretells a text, its logits as an array or a base of llama-perplexity's
//! answers    greedy continuations of a list of prompts
//! bench      llama.cpp and wayinfer on the same model, in turns
//! ```

pub mod answers;
pub mod bench;
pub mod capture;
pub mod encode;
pub mod error;
pub mod ffi;
pub mod formats;
pub mod perplexity;
pub mod quantize;
pub mod tensors;
