//! NVIDIA's compiler at run time, which is no part of the driver: it comes with CUDA's toolkit, or alone.

use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

use libloading::Library;

type Program = *mut c_void;

/// Its functions, as nvrtc.h declares them; a result that is not 0 is an error.
struct Functions {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log: Output,
    ptx: Output,
    cubin: Output,
    archs_len: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
}

/// How one asks for the size of something, and for it.
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

/// The compiler.
pub(super) struct Nvrtc(&'static Functions);

/// What it compiles for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Machine code of this compute capability, 10 times the major version.
    Machine(c_int),
    /// What the driver compiles further.
    Ptx(c_int),
}

impl Target {
    fn option(self) -> String {
        match self {
            Target::Machine(arch) => format!("--gpu-architecture=sm_{arch}"),
            Target::Ptx(arch) => format!("--gpu-architecture=compute_{arch}"),
        }
    }
}

impl Nvrtc {
    /// Loads it, once.
    pub(super) fn load() -> Option<Nvrtc> {
        static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
        FUNCTIONS.get_or_init(|| candidates().into_iter().find_map(functions)).as_ref().map(Nvrtc)
    }

    /// For options and names of caches.
    pub(super) fn version(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two numbers are written.
        unsafe { (self.0.version)(&mut major, &mut minor) };
        format!("NVRTC {major}.{minor}")
    }

    /// What it can compile for a device of this compute capability.
    pub(super) fn target(&self, capability: c_int) -> Option<Target> {
        let mut len = 0;
        // SAFETY: a number is written, then so many.
        let archs = unsafe {
            (self.0.archs_len)(&mut len);
            let mut archs = vec![0; usize::try_from(len).unwrap_or(0).min(1000)];
            (self.0.archs)(archs.as_mut_ptr());
            archs
        };
        best(&archs, capability)
    }

    /// Compiles CUDA C++. The error is the compiler's log.
    pub(super) fn compile(&self, source: &str, options: &[&str], target: Target) -> Result<Vec<u8>, String> {
        let f = self.0;
        let text = |text: &str| CString::new(text).map_err(|_| "a zero byte in the source".to_owned());
        let source = text(source)?;
        let options =
            options.iter().copied().chain([&*target.option()]).map(text).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = ptr::null_mut();
        let check = |code| if code == 0 { Ok(()) } else { Err(self.error(code)) };
        // SAFETY: all texts end by zero and stay until the program is destroyed; no headers.
        unsafe {
            check((f.create)(
                &mut program,
                source.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            ))?;
            let code = (f.compile)(program, pointers.len() as c_int, pointers.as_ptr());
            let made = match (code, target) {
                (0, Target::Machine(_)) => f.cubin.of(program),
                (0, Target::Ptx(_)) => f.ptx.of(program),
                _ => {
                    let log = f.log.of(program).unwrap_or_default();
                    Err(format!("{}\n{}", self.error(code), String::from_utf8_lossy(&log)))
                }
            };
            (f.destroy)(&mut program);
            made.map_err(|log| log.trim_end_matches(['\0', '\n']).to_owned())
        }
    }

    fn error(&self, code: c_int) -> String {
        // SAFETY: it gives a constant text for whatever number.
        unsafe {
            let text = (self.0.error)(code);
            if text.is_null() {
                format!("error {code}")
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        }
    }
}

impl Output {
    /// # Safety
    /// The program is one, and has what is asked for.
    unsafe fn of(&self, program: Program) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: as our caller says; there is room for so many bytes.
        unsafe {
            if (self.size)(program, &mut len) != 0 {
                return Err("NVRTC gives no size".to_owned());
            }
            let mut bytes = vec![0u8; len];
            match (self.get)(program, bytes.as_mut_ptr().cast()) {
                0 => Ok(bytes),
                code => Err(format!("NVRTC error {code}")),
            }
        }
    }
}

/// Machine code where the compiler knows the device, else PTX of the best that it knows below.
fn best(archs: &[c_int], capability: c_int) -> Option<Target> {
    if archs.contains(&capability) {
        return Some(Target::Machine(capability));
    }
    archs.iter().copied().filter(|arch| *arch <= capability).max().map(Target::Ptx)
}

/// Where it may be: by its name wherever libraries are looked for, and where CUDA's toolkit lies.
fn candidates() -> Vec<PathBuf> {
    let (names, folder): (&[&str], _) = if cfg!(windows) {
        (&["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"], "bin")
    } else {
        (&["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"], "lib64")
    };
    let mut folders: Vec<PathBuf> =
        ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(env::var_os).map(Into::into).collect();
    folders.push("/usr/local/cuda".into());
    let mut found: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    found.extend(folders.iter().flat_map(|cuda| names.iter().map(move |name| cuda.join(folder).join(name))));
    found
}

fn functions(path: PathBuf) -> Option<Functions> {
    // SAFETY: what is loaded is NVIDIA's library, by its name, which does nothing when loaded; the functions
    // are as its header declares them.
    unsafe {
        let library = Library::new(path).ok()?;
        macro_rules! get {
            ($name:literal) => {
                *library.get($name).ok()?
            };
        }
        Some(Functions {
            create: get!(b"nvrtcCreateProgram\0"),
            compile: get!(b"nvrtcCompileProgram\0"),
            destroy: get!(b"nvrtcDestroyProgram\0"),
            log: Output { size: get!(b"nvrtcGetProgramLogSize\0"), get: get!(b"nvrtcGetProgramLog\0") },
            ptx: Output { size: get!(b"nvrtcGetPTXSize\0"), get: get!(b"nvrtcGetPTX\0") },
            cubin: Output { size: get!(b"nvrtcGetCUBINSize\0"), get: get!(b"nvrtcGetCUBIN\0") },
            archs_len: get!(b"nvrtcGetNumSupportedArchs\0"),
            archs: get!(b"nvrtcGetSupportedArchs\0"),
            version: get!(b"nvrtcVersion\0"),
            error: get!(b"nvrtcGetErrorString\0"),
            _library: library,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_target_is_machine_code_of_the_device() {
        let archs = [75, 80, 86, 90];
        assert_eq!(best(&archs, 86), Some(Target::Machine(86)));
        assert_eq!(best(&archs, 89), Some(Target::Ptx(86)));
        assert_eq!(best(&archs, 120), Some(Target::Ptx(90)));
        assert_eq!(best(&archs, 61), None, "its compiler has forgotten it");
        assert_eq!(best(&[], 90), None);
    }

    /// The compiler needs no card.
    #[test]
    fn kernels_compile_to_machine_code_and_to_ptx() {
        let Some(nvrtc) = Nvrtc::load() else {
            eprintln!("skipped: NVRTC's library is not installed");
            return;
        };
        let source = format!("{}\n{}", super::super::cuda::MACROS, super::super::tests::SOURCE);
        let options = super::super::cuda::OPTIONS;
        let Some(Target::Machine(arch)) = nvrtc.target(90) else { panic!("{}", nvrtc.version()) };
        let cubin = nvrtc.compile(&source, &options, Target::Machine(arch)).unwrap();
        assert_eq!(&cubin[..4], b"\x7fELF");
        let ptx = nvrtc.compile(&source, &options, Target::Ptx(arch)).unwrap();
        let ptx = String::from_utf8(ptx).unwrap();
        assert!(ptx.contains(".entry add(") && ptx.contains(".entry numbers("), "{ptx}");
        // One is asked for; the product and the sum stay two.
        assert_eq!(ptx.matches("fma.rn.f32").count(), 1, "{ptx}");
        assert!(ptx.contains("mul.rn.f32") && ptx.contains("add.rn.f32"), "{ptx}");
        assert!(ptx.contains("div.rn.f32") && !ptx.contains("ftz"), "{ptx}");
        let log = nvrtc.compile("__kernel", &options, Target::Machine(arch)).unwrap_err();
        assert!(log.contains("__kernel"), "{log}");
    }
}
