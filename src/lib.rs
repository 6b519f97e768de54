//! WayInfer: inspect, verify and run GGUF models on a CPU, models larger than RAM included.
//!
//! The layers, in the order in which data flows; imports go down this list only (a layer imports
//! what stands above it here, never what stands below):
//!
//! 1. [`gguf`] FILE: bytes to a directory of metadata and tensors
//! 2. [`quant`] FORMATS: block layouts, decoding, activation quantisers, scalar dots
//! 3. [`kernels`] COMPUTE: kernel sets by instruction set, best first
//! 4. [`store`] RESIDENCY: where a weight's bytes are; its `os` asks the operating system for all layers
//! 5. [`text`] TEXT: tokenizers and chat templates
//! 6. [`model`] MODEL: parts, families made of them, states of sequences, forward pass, observer
//! 7. [`engine`] ENGINE: passes over sequences, sampling, speculation, prefixes that are kept, requests
//! 8. [`verify`] VERIFY: error measures, files of references, comparison of traces, dot checks
//! 9. [`show`] SHOW: texts that are safe to show, figures for people, pictures and pages of them
//! 10. [`hub`] HUB: models by name: the hub's cache folder, and what fetches into it
//! 11. [`server`] FACE: the HTTP server
//! 12. [`cli`] FACE: the command line

pub mod cli;
pub mod engine;
pub mod gguf;
pub mod hub;
pub mod kernels;
pub mod model;
pub mod quant;
pub mod server;
pub mod show;
pub mod store;
pub mod text;
pub mod verify;
