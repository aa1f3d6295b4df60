//! Models of which nothing is known but their tensors: any folder, any safetensors file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tensorpress_tensor::checkpoint::{ByteSource, Files, Folder, explain_missing};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::rewrite::{LinearSpec, Role, SharedInput};
use tensorpress_tensor::source::matrix_shape;
use tensorpress_tensor::{Checkpoint, Context as _, Error, ErrorKind, Registry, Result};

use super::tensors::part_of;
use super::{CONFIG, Source, parsed};
use crate::architecture::{Before, BlockPlan, EmbeddingPlan, HeadPlan, MixerPlan, PartPlan, Plan};
use crate::config::Config;
use crate::tokenizer::TokenizerFiles;

impl Source {
    /// Opens a Hugging Face folder as [`Source::open`] does; and where nothing says how its model computes (there is no
    /// `config.json`, or one of an architecture that has no forward pass here), that folder, or a single safetensors file,
    /// at the level of its tensors: [`Source::unknown`] says why. What needs no forward pass works as ever.
    ///
    /// Its matrices are then all tensors of floats with two axes or more, `[out, in, ..]` as `[out, in x ..]`, but for
    /// embeddings and others whose names say that they are none; they are grouped into blocks by the first number in their
    /// names.
    ///
    /// # Errors
    /// As [`Source::open`]: a config that contradicts itself is an error still, and weights that others have quantised.
    pub fn open_any(path: impl AsRef<Path>, registry: &Registry) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            let why = "a file of tensors alone".to_owned();
            let files = Arc::new(OneFile::new(path));
            return Self::of_tensors(Value::Null, why, Checkpoint::open(path)?, files, registry);
        }
        let mut source = Self::open_any_in(Arc::new(Folder::new(path)), registry)?;
        source.folder = Some(path.to_path_buf());
        Ok(source)
    }

    /// [`Source::open_any`] of a folder that lies anywhere, such as inside a packed file.
    ///
    /// # Errors
    /// As [`Source::open_any`].
    pub fn open_any_in(files: Arc<dyn Files>, registry: &Registry) -> Result<Self> {
        if !files.contains(CONFIG) {
            if let Some(error) = explain_missing(&*files) {
                return Err(error);
            }
            if !files.names()?.iter().any(|name| name.ends_with(".safetensors")) {
                // There is nothing at all: what is missed first is the config.
                return Self::open_in(files, registry);
            }
            let why = format!("there is no {CONFIG}");
            let checkpoint = Checkpoint::open_in(&*files)?;
            return Self::of_tensors(Value::Null, why, checkpoint, files, registry);
        }
        let (raw, file) = parsed(&*files)?;
        match Config::from_json(&raw, &file) {
            Err(error) if is_unknown(&error, &raw) && !is_quantised(&raw) => {
                let checkpoint = Checkpoint::open_in(&*files)?;
                Self::of_tensors(raw, error.to_string(), checkpoint, files, registry)
            }
            _ => Self::open_in(files, registry),
        }
    }

    /// Why nothing is known of this model but its tensors, if that is so. It has no forward pass then: [`Source::embedding`],
    /// [`Source::head`], [`Source::decoder`] and [`Source::encoder`] are `Unsupported`.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_ref().map(|unknown| unknown.why.as_str())
    }

    /// That more is known of the model than its tensors.
    ///
    /// # Errors
    /// `Unsupported`, saying why not.
    pub fn need_forward(&self) -> Result<()> {
        self.unknown().map_or(Ok(()), |why| {
            Err(Error::unsupported(format!("the model cannot be run: {why}")))
        })
    }

    fn of_tensors(
        raw: Value,
        why: String,
        checkpoint: Checkpoint,
        files: Arc<dyn Files>,
        registry: &Registry,
    ) -> Result<Self> {
        let trees = checkpoint.trees()?;
        let plan = plan(&checkpoint, &trees, registry)?;
        let mut notes = checkpoint.notes().to_vec();
        let names = |block: &BlockPlan| block.linears().into_iter().map(|spec| spec.name);
        let blocks = plan.blocks.iter().map(names).enumerate();
        let blocks =
            blocks.flat_map(|(block, names)| names.map(move |name| (name, block))).collect();
        notes.push(format!("taken as tensors, without a forward pass: {why}"));
        Ok(Self {
            config: Config::unknown(plan.blocks.len()),
            raw: if raw.is_null() { Value::Object(serde_json::Map::new()) } else { raw },
            checkpoint,
            folder: None,
            tokenizer: TokenizerFiles::Files(files.clone()),
            files: Some(files),
            trees,
            registry: registry.clone(),
            plan,
            ropes: Default::default(),
            unknown: Some(Unknown { why, blocks }),
            notes,
        })
    }
}

/// What is known of a model of which nothing is known but its tensors.
#[derive(Debug)]
pub(super) struct Unknown {
    /// Why that is so.
    why: String,
    /// The block of each matrix.
    pub(super) blocks: BTreeMap<String, usize>,
}

/// The config is of something else, not wrong.
fn is_unknown(error: &Error, raw: &Value) -> bool {
    let named = ["model_type", "architectures"].iter().any(|key| !raw[*key].is_null());
    error.kind() == ErrorKind::Unsupported || !named && error.kind() == ErrorKind::InsufficientData
}

/// By others: its tensors are no weights.
fn is_quantised(raw: &Value) -> bool {
    let quantization = raw.get("quantization_config").filter(|value| !value.is_null());
    quantization.is_some_and(|q| q.get("quant_method").is_none_or(|m| m != "tensorpress"))
}

/// Blocks of matrices with the same first number in their names, in the order of the numbers.
fn plan(
    checkpoint: &Checkpoint,
    trees: &BTreeMap<String, Json>,
    registry: &Registry,
) -> Result<Plan> {
    let mut matrices: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for (name, tree) in trees {
        matrices.insert(name, registry.read(tree, name, checkpoint).in_tensor(name)?.shape());
    }
    for name in checkpoint.names().filter(|name| part_of(trees, name).is_none()) {
        let shape = checkpoint.shape(name).unwrap_or_default();
        let is_float = checkpoint.dtype(name).is_ok_and(|dtype| dtype.is_float());
        let [rows, columns] = matrix_shape(shape);
        if is_float && shape.len() >= 2 && rows >= 2 && columns >= 2 && !is_no_weight(name) {
            matrices.insert(name, [rows, columns]);
        }
    }
    let mut groups: BTreeMap<(&str, Option<u64>), Vec<LinearSpec>> = BTreeMap::new();
    for (name, shape) in matrices {
        let specs = groups.entry(numbered(name)).or_default();
        let mut spec = LinearSpec::new(Role::Other, name, shape);
        // Each reads its own.
        spec.input = SharedInput::Other(specs.len());
        specs.push(spec);
    }
    let block = |((before, number), specs): ((&str, Option<u64>), Vec<LinearSpec>)| BlockPlan {
        prefix: number.map_or_else(String::new, |number| format!("{before}{number}.")),
        parts: vec![PartPlan {
            norm: Before::Nothing,
            mixer: MixerPlan::Other(specs),
            after: None,
            scale: 1.0,
            then: None,
        }],
        parallel: false,
    };
    Ok(Plan {
        prefix: "",
        prefixes: &[],
        embedding: EmbeddingPlan::none(""),
        images: None,
        layers: String::new(),
        blocks: groups.into_iter().map(block).collect(),
        head: HeadPlan::none(""),
        joint: None,
    })
}

/// What stands before the first number that is a component of a name, and that number.
fn numbered(name: &str) -> (&str, Option<u64>) {
    let mut at = 0;
    for component in name.split('.') {
        // Only as it is written there: 007 is no 7.
        if let Ok(number) = component.parse::<u64>()
            && number.to_string() == component
        {
            return (&name[..at], Some(number));
        }
        at += component.len() + 1;
    }
    ("", None)
}

/// The name says that it is no matrix to multiply by: an embedding, a norm, a bias, a state's decay.
fn is_no_weight(name: &str) -> bool {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let last = stem.rsplit('.').next().unwrap_or(stem).to_lowercase();
    let parts = ["embed", "norm", "bias", "token", "pos_", "position", "running_", "mask"];
    let whole =
        ["wte", "wpe", "shared", "a_log", "d", "scale", "gamma", "beta", "codebook", "centroids"];
    parts.iter().any(|part| last.contains(part))
        || whole.contains(&last.as_str())
        || last.ends_with("emb")
        || last.starts_with("time_")
}

/// One file of a folder, and nothing beside it.
#[derive(Debug)]
struct OneFile {
    folder: Folder,
    name: String,
}

impl OneFile {
    fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self { folder: Folder::new(parent.unwrap_or(Path::new("."))), name }
    }
}

impl Files for OneFile {
    fn names(&self) -> Result<Vec<String>> {
        Ok(vec![self.name.clone()])
    }

    /// Nothing goes along.
    fn below(&self, _: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn contains(&self, name: &str) -> bool {
        name == self.name && self.folder.contains(name)
    }

    fn open(&self, name: &str) -> Result<Arc<dyn ByteSource>> {
        match name == self.name {
            true => self.folder.open(name),
            false => Err(Error::insufficient("no such file").in_file(self.path(name))),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_of_names() {
        for (name, before, number) in [
            ("layers.3.mlp.0.weight", "layers.", Some(3)),
            ("0.weight", "", Some(0)),
            ("conv1.weight", "", None),
            ("a.007.b.12.c", "a.007.b.", Some(12)),
            ("x.99999999999999999999999.y", "", None),
            ("", "", None),
        ] {
            assert_eq!(numbered(name), (before, number), "{name}");
        }
    }

    #[test]
    fn what_is_no_weight() {
        let none = [
            "model.embed_tokens.weight",
            "wte.weight",
            "embeddings.position_embedding.weight",
            "blocks.1.norm.weight",
            "mixer.A_log",
            "cls_token",
            "shared.weight",
            "pos_emb",
        ];
        let weights = [
            "patch_embed.proj.weight",
            "time_embedding.linear_1.weight",
            "weight",
            "layers.0.in_proj_weight",
            "conv.weight",
            "experts.gate_up_proj",
            "fc",
        ];
        assert!(none.iter().all(|name| is_no_weight(name)));
        assert!(!weights.iter().any(|name| is_no_weight(name)));
    }
}
