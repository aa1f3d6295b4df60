//! What architectures call their tensors in GGUF files, and in Hugging Face folders.

/// Names of tensors outside the blocks, or behind the number of one, without `.weight` and `.bias`: those of a file and
/// those of a folder.
type Names = &'static [(&'static str, &'static str)];

/// An architecture that has a name in both worlds.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arch {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// `model_type`.
    pub kind: &'static str,
    /// `architectures`.
    pub class: &'static str,
    /// What stands before the number of a block in a folder.
    layers: &'static str,
    globals: Names,
    /// In as many lists as are shared with others.
    block: &'static [Names],
    /// Matrices of which a file has all experts' in one tensor; `{}` is the number of the expert.
    experts: Names,
    /// Rows of q and k lie in pairs that are turned together, not in halves.
    pub(super) paired: bool,
    /// Norms are stored plus one.
    plus_one: bool,
}

const GLOBALS: Names =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const ATTENTION: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

const FUSED: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
];

const NORM: Names = &[("ffn_norm", "post_attention_layernorm")];

const GEMMA_NORMS: Names = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const GATED: Names =
    &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

const FUSED_GATE: Names = &[("ffn_up", "mlp.gate_up_proj"), ("ffn_down", "mlp.down_proj")];

const BERT_GLOBALS: Names = &[
    ("token_embd", "embeddings.word_embeddings"),
    ("position_embd", "embeddings.position_embeddings"),
    ("token_types", "embeddings.token_type_embeddings"),
    ("token_embd_norm", "embeddings.LayerNorm"),
];

const BERT: Names = &[
    ("attn_q", "attention.self.query"),
    ("attn_k", "attention.self.key"),
    ("attn_v", "attention.self.value"),
    ("attn_output", "attention.output.dense"),
    ("attn_output_norm", "attention.output.LayerNorm"),
    ("ffn_up", "intermediate.dense"),
    ("ffn_down", "output.dense"),
    ("layer_output_norm", "output.LayerNorm"),
];

const LLAMA: Arch = Arch {
    gguf: "llama",
    kind: "llama",
    class: "LlamaForCausalLM",
    layers: "model.layers.",
    globals: GLOBALS,
    block: &[ATTENTION, NORM, GATED],
    experts: &[],
    paired: true,
    plus_one: false,
};

static ROWS: [Arch; 9] = [
    LLAMA,
    // The same name in files: what tells them apart is that there are experts.
    Arch {
        kind: "mixtral",
        class: "MixtralForCausalLM",
        block: &[ATTENTION, NORM, &[("ffn_gate_inp", "block_sparse_moe.gate")]],
        experts: &[
            ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
            ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
            ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
        ],
        ..LLAMA
    },
    Arch { gguf: "qwen2", kind: "qwen2", class: "Qwen2ForCausalLM", paired: false, ..LLAMA },
    Arch { gguf: "qwen3", kind: "qwen3", class: "Qwen3ForCausalLM", paired: false, ..LLAMA },
    Arch {
        gguf: "qwen3moe",
        kind: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        block: &[ATTENTION, NORM, &[("ffn_gate_inp", "mlp.gate")]],
        experts: &[
            ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
            ("ffn_down_exps", "mlp.experts.{}.down_proj"),
            ("ffn_up_exps", "mlp.experts.{}.up_proj"),
        ],
        paired: false,
        ..LLAMA
    },
    Arch {
        gguf: "gemma2",
        kind: "gemma2",
        class: "Gemma2ForCausalLM",
        block: &[ATTENTION, GEMMA_NORMS, GATED],
        paired: false,
        plus_one: true,
        ..LLAMA
    },
    Arch {
        gguf: "gemma3",
        kind: "gemma3_text",
        class: "Gemma3ForCausalLM",
        block: &[ATTENTION, GEMMA_NORMS, GATED],
        paired: false,
        plus_one: true,
        ..LLAMA
    },
    Arch {
        gguf: "phi3",
        kind: "phi3",
        class: "Phi3ForCausalLM",
        block: &[FUSED, NORM, FUSED_GATE],
        paired: false,
        ..LLAMA
    },
    Arch {
        gguf: "bert",
        kind: "bert",
        class: "BertModel",
        layers: "encoder.layer.",
        globals: BERT_GLOBALS,
        block: &[BERT],
        paired: false,
        ..LLAMA
    },
];

/// What a tensor of a file is in a folder, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name; of experts' matrices in one tensor with `{}` for the number of the expert.
    pub name: String,
    /// Heads whose rows lie in another order: those of q or of k.
    pub paired: Option<Paired>,
    /// What a file stores is one more.
    pub plus_one: bool,
    /// All experts' matrices are one tensor of the file.
    pub experts: bool,
}

impl Place {
    /// A tensor that is the same in both worlds.
    #[must_use]
    pub fn same(name: &str) -> Self {
        Self { name: name.to_owned(), paired: None, plus_one: false, experts: false }
    }
}

/// Whose heads' rows lie in pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paired {
    /// Those of the queries.
    Queries,
    /// Those of the keys.
    Keys,
}

/// A name and what stands behind it.
fn stem(name: &str) -> Option<(&str, &str)> {
    let suffix = [".weight", ".bias"].into_iter().find(|suffix| name.ends_with(suffix))?;
    Some((&name[..name.len() - suffix.len()], suffix))
}

/// The number that a name begins with, and what follows it.
fn number(name: &str) -> Option<(&str, &str)> {
    let (number, rest) = name.split_once('.')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then_some((number, rest))
}

impl Arch {
    /// Every architecture.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        ROWS.iter()
    }

    /// That of a file: its `general.architecture`, and whether it has experts.
    #[must_use]
    pub fn of_file(name: &str, experts: bool) -> Option<&'static Self> {
        ROWS.iter().find(|arch| arch.gguf == name && arch.experts.is_empty() != experts)
    }

    /// That of a folder: its `model_type`.
    #[must_use]
    pub fn of_folder(kind: &str) -> Option<&'static Self> {
        // Files of Mistral's models say llama.
        let kind = if kind == "mistral" { "llama" } else { kind };
        ROWS.iter().find(|arch| arch.kind == kind)
    }

    /// What a tensor of a file is called in a folder.
    #[must_use]
    pub fn to_folder(&self, name: &str) -> Option<Place> {
        let (name, suffix) = stem(name)?;
        let find = |names: Names, from: &str| {
            names.iter().find(|(file, _)| *file == from).map(|(_, folder)| *folder)
        };
        let Some((block, within)) = name.strip_prefix("blk.").and_then(number) else {
            let folder = find(self.globals, name)?;
            return Some(self.place(name, format!("{folder}{suffix}"), false));
        };
        let experts = find(self.experts, within);
        let in_block = self.block.iter().find_map(|names| find(names, within));
        let folder = in_block.or(experts)?;
        let full = format!("{}{block}.{folder}{suffix}", self.layers);
        Some(self.place(within, full, experts.is_some()))
    }

    /// What a tensor of a folder is called in a file; of experts' matrices, also the number of the expert.
    #[must_use]
    pub fn to_file(&self, name: &str) -> Option<(Place, Option<usize>)> {
        // Old checkpoints of BERT call weights and biases of norms otherwise.
        let older = [(".gamma", ".weight"), (".beta", ".bias")]
            .iter()
            .find_map(|(old, new)| name.strip_suffix(old).map(|stem| (stem, *new)));
        let (stem, suffix) = older.or(stem(name))?;
        // Checkpoints may name the model before everything, or leave that out.
        let whole = format!("model.{stem}");
        let known = |stem: &str| {
            let inside = stem.strip_prefix("model.");
            inside.is_some() || stem.starts_with("lm_head") || self.gguf == "bert"
        };
        let stem = stem.strip_prefix("bert.").filter(|_| self.gguf == "bert").unwrap_or(stem);
        let stem = if known(stem) { stem } else { &whole };
        let find = |names: Names, from: &str| {
            names.iter().find(|(_, folder)| *folder == from).map(|(file, _)| *file)
        };
        if let Some(file) = find(self.globals, stem) {
            return Some((self.place(file, format!("{file}{suffix}"), false), None));
        }
        let (block, within) = stem.strip_prefix(self.layers).and_then(number)?;
        if let Some(file) = self.block.iter().find_map(|names| find(names, within)) {
            return Some((self.place(file, format!("blk.{block}.{file}{suffix}"), false), None));
        }
        self.experts.iter().find_map(|(file, folder)| {
            let (before, after) = folder.split_once("{}")?;
            let rest = within.strip_prefix(before)?;
            let (expert, rest) = number(rest)?;
            let there = after.strip_prefix('.') == Some(rest);
            let place = self.place(file, format!("blk.{block}.{file}{suffix}"), true);
            there.then(|| Some((place, expert.parse().ok())))?
        })
    }

    fn place(&self, file: &str, name: String, experts: bool) -> Place {
        let paired = match file {
            "attn_q" => Some(Paired::Queries),
            "attn_k" => Some(Paired::Keys),
            _ => None,
        };
        let norm = file.ends_with("norm");
        Place {
            name,
            paired: paired.filter(|_| self.paired),
            plus_one: self.plus_one && norm,
            experts,
        }
    }

    /// Whether all experts' matrices lie in one tensor.
    #[must_use]
    pub fn has_experts(&self) -> bool {
        !self.experts.is_empty()
    }
}

/// Where each row of a folder's q or k lies in a file: rows of a head there are pairs of what its halves are here.
#[must_use]
pub fn pairs(rows: usize, heads: usize) -> Vec<usize> {
    let dim = rows / heads.max(1);
    let of_head = |head: usize| {
        (0..dim).map(move |row| {
            let (half, within) = (row / (dim / 2).max(1), row % (dim / 2).max(1));
            head * dim + 2 * within + half
        })
    };
    (0..heads).flat_map(of_head).collect()
}
