//! FACE: the Python module `wayinfer._native`, which is there with the feature `python`.
//!
//! A model is behind a server without a socket, so that texts and chats are answered as `wayinfer serve`
//! answers them, and sessions go on in the same passes; what else no dialect asks for (logits, tensors) is
//! done with its engine between two passes. The package around it, with what its users see, is Python and
//! lies in `wayinfer/`.
//!
//! - `model` is a model, `reply` what it answers, `session` a text that is kept, `generation` how it goes on.
//! - `errors` makes exceptions of what goes wrong, `wait` waits without the interpreter, `arrays` hands over
//!   numbers.

#[cfg(feature = "python")]
mod arrays;
#[cfg(feature = "python")]
mod errors;
#[cfg(feature = "python")]
mod generation;
#[cfg(feature = "python")]
mod model;
#[cfg(feature = "python")]
mod reply;
#[cfg(feature = "python")]
mod saved;
#[cfg(feature = "python")]
mod session;
#[cfg(feature = "python")]
mod stage;
#[cfg(feature = "python")]
mod wait;

/// What `wayinfer` is made of; not for its users.
#[cfg(feature = "python")]
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::generation::Generation;
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::reply::Reply;
    #[pymodule_export]
    use super::session::Session;
    #[pymodule_export]
    use super::stage::{Stage, stage_costs};
    #[pymodule_export]
    use super::wait::waiting;
}
