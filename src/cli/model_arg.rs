//! The model argument that subcommands share.

use std::path::{Path, PathBuf};

use clap::Args;

/// `MODEL` or `-m/--model MODEL`: exactly one of the two.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct ModelArg {
    /// GGUF file; any one of a split model
    #[arg(value_name = "MODEL")]
    positional: Option<PathBuf>,

    /// The same, as an option
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    flag: Option<PathBuf>,
}

impl ModelArg {
    /// The path given.
    pub fn path(&self) -> &Path {
        self.positional.as_deref().or(self.flag.as_deref()).expect("clap requires one of the two")
    }
}
