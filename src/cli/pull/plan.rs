//! Whether a model that is not there yet can run, and where its weights would go.

use serde::Serialize;

use crate::cli::engine_args::{self, Loaded};
use crate::cli::output::{self, tell};
use crate::cli::placement::{self, Budget, PlanReport};
use crate::cli::safe_text::escape;
use crate::cli::{CliError, InFile};
use crate::engine::{DEFAULT_BATCH, EngineOptions, Speculation};
use crate::gguf::Source;
use crate::hub::{Heads, ModelName, Selector};
use crate::model::KvType;
use crate::store::Guesses;

/// The plan, as `inspect --plan` makes it, without the disk: nothing lies on it yet.
#[derive(Serialize)]
pub struct Planned {
    architecture: String,
    parameters: u64,
    context: usize,
    /// `null` where the model does not fit into the memory that is available now.
    #[serde(flatten)]
    plan: Option<PlanReport>,
    #[serde(skip)]
    rows: Vec<(&'static str, String)>,
}

impl Planned {
    /// For people.
    pub fn table(&self) -> String {
        let mut table = output::new_table(&["", ""], &[]);
        for (name, value) in &self.rows {
            table.add_row([(*name).to_owned(), escape(value).into_owned()]);
        }
        table.trim_fmt().trim_start_matches('\n').to_owned()
    }
}

/// Plans with headers; refuses what cannot run.
///
/// # Errors
/// An architecture, a type of weights or anything else that no run could have.
pub fn of_heads(heads: &Heads, name: &ModelName) -> Result<Planned, CliError> {
    let loaded = engine_args::load_to_draft(Source::File(heads.path()), Speculation::Auto);
    let loaded = loaded.map_err(|error| {
        // Where the headers lie for now is nobody's business.
        let place = format!("{}{}", heads.folder().display(), std::path::MAIN_SEPARATOR);
        let shown = name.with(Selector::Default).to_string();
        CliError::new(error.message().replace(&place, &format!("{shown}: ")))
    })?;
    let Loaded { gguf, model, .. } = &loaded;
    let context = engine_args::context(None, model.spec().context);
    let drafts = Speculation::Auto.most(model.spec());
    let options = EngineOptions {
        context,
        batch: DEFAULT_BATCH,
        kv: KvType::default(),
        threads: engine_args::threads(None),
        isa: None,
        drafts,
        guesses: Guesses::Off,
    };
    let parameters = gguf.tensors.iter().map(|tensor| tensor.elements()).fold(0, u64::saturating_add);
    let architecture = model.spec().architecture.clone();
    let mut rows = vec![("model", format!("{architecture}, {} parameters", output::count(parameters)))];
    let budget = Budget::new(None, model, std::slice::from_ref(&options), 1 + drafts);
    let plan = match budget.plan(model, None).in_file(name.to_string().as_ref()) {
        Ok(plan) => {
            rows.extend(placement::rows(&budget, &plan, &options, None));
            Some(PlanReport::new(&plan, None))
        }
        // Another time, or with --ram, there may be more.
        Err(error) => {
            tell!("warning: {}", escape(&error.message()));
            None
        }
    };
    Ok(Planned { architecture, parameters, context, plan, rows })
}
