//! WayInfer: inspect, verify and run GGUF models on a CPU, models larger than RAM included.
//!
//! The layers, in the order in which data flows; imports go down this list only (a layer imports
//! what stands above it here, never what stands below):
//!
//! 1. [`gguf`] FILE: bytes to a directory of metadata and tensors
//! 2. [`quant`] FORMATS: block layouts, decoding, activation quantisers, scalar dots
//! 3. [`kernels`] COMPUTE: kernel sets by instruction set, best first
//! 4. [`device`] DEVICE: graphics cards: drivers that are loaded at run time, and our kernels on them
//! 5. [`store`] RESIDENCY: where a weight's bytes are; its `os` asks the operating system for all layers
//! 6. [`text`] TEXT: tokenizers and chat templates
//! 7. [`model`] MODEL: parts, families made of them, states of sequences, forward pass, observer
//! 8. [`engine`] ENGINE: passes over sequences, sampling, speculation, prefixes that are kept, requests
//! 9. [`verify`] VERIFY: error measures, files of references, comparison of traces, dot checks
//! 10. [`show`] SHOW: texts that are safe to show, figures for people, pictures and pages of them
//! 11. [`hub`] HUB: models by name: the hub's cache folder, and what fetches into it
//! 12. [`server`] FACE: the HTTP server
//! 13. [`cli`] FACE: the command line
//! 14. [`python`] FACE: the Python module, where the crate is built with the feature `python`

pub mod cli;
pub mod device;
pub mod engine;
pub mod gguf;
pub mod hub;
pub mod kernels;
pub mod model;
pub mod python;
pub mod quant;
pub mod server;
pub mod show;
pub mod store;
pub mod text;
pub mod verify;
