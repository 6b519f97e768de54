//! ggml and llama.cpp behind small safe types. All of the crate's unsafe code is in this module.

mod format;
mod model;
mod node;

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result, refuse};

pub use format::{Format, FormatId, Rows, ids as format_ids};
pub use model::{Batch, Context, ContextOptions, Flash, KvType, Model, ModelOptions, Mtp};
pub use node::{Node, NodeValues};

/// Starts ggml once a process; its warnings and errors go to stderr, the rest nowhere.
pub(crate) fn init() {
    static START: Once = Once::new();
    START.call_once(|| {
        // SAFETY: the callback outlives the process and takes no user data; both calls happen once, before any other.
        unsafe {
            sys::llama_log_set(Some(log), std::ptr::null_mut());
            sys::llama_backend_init();
        }
    });
}

/// ggml's log callback.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    if level == sys::GGML_LOG_LEVEL_WARN || level == sys::GGML_LOG_LEVEL_ERROR {
        // SAFETY: ggml passes a NUL-terminated string that lives for the call.
        eprint!("{}", unsafe { string(text) });
    }
}

/// A copy of a C string.
///
/// # Safety
/// `text` is null or NUL-terminated and lives for the call.
unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NUL-terminated by the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn path_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::Refused(format!("{}: a NUL in the path", path.display())))
}

/// What ggml says that it was built with, such as `CPU : SSE3 = 1 | AVX = 1 | `.
pub fn system_info() -> String {
    init();
    // SAFETY: returns a pointer to a static string; this crate calls it from one thread.
    unsafe { string(sys::llama_print_system_info()) }
}

/// llama.cpp's version text.
pub fn version() -> String {
    // SAFETY: returns a pointer to a static string.
    unsafe { string(sys::llama_version()) }
}

/// The features of [`system_info`] that are switched on.
pub fn features() -> Vec<String> {
    let info = system_info();
    let list = info.split_once(':').map_or("", |(_, list)| list);
    let on = |item: &str| item.trim().strip_suffix("= 1").map(|name| name.trim().to_string());
    list.split('|').filter_map(on).collect()
}

/// Refuses unless this is the portable build, whose arithmetic is the same on every x86-64 machine: ggml then names no
/// feature at all (AVX, FMA, LLAMAFILE and so on).
pub fn require_portable() -> Result<()> {
    if !features().is_empty() {
        return refuse(format!(
            "this is not the portable build ({}): goldens come from `scripts/ggml/build.sh portable` alone",
            system_info().trim()
        ));
    }
    Ok(())
}

/// The most memory that this process has held.
pub fn peak_rss_bytes() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the struct that it is given; all its bits zero is a value too, should it fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_maxrss as u64 * 1024
}

/// How [`quantize_file`] makes a file.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeOptions {
    /// ggml's number of the file type, such as 15 for Q4_K_M.
    pub ftype: u32,
    /// Every matrix in the file type's own format, without the mixture.
    pub pure: bool,
    pub threads: i32,
    /// The type of `output.weight`, else what the mixture says.
    pub output: Option<FormatId>,
    /// The type of `token_embd.weight`, else what the mixture says.
    pub embedding: Option<FormatId>,
}

/// Quantises a GGUF file with llama.cpp.
///
/// # Errors
/// Where llama.cpp refuses; it says why on stderr.
pub fn quantize_file(from: &Path, to: &Path, options: &QuantizeOptions) -> Result<()> {
    init();
    let (input, output) = (path_string(from)?, path_string(to)?);
    // SAFETY: the paths are NUL-terminated and live for the call, the parameters are llama.cpp's own defaults with
    // plain values replaced, and no pointer in them is set.
    let code = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = options.ftype;
        params.pure_ = options.pure;
        params.nthread = options.threads;
        if let Some(id) = options.output {
            params.output_tensor_type = id.0;
        }
        if let Some(id) = options.embedding {
            params.token_embedding_type = id.0;
        }
        sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), &params)
    };
    match code {
        0 => Ok(()),
        code => Err(Error::Ggml(format!("{}: quantising failed with {code}", from.display()))),
    }
}
