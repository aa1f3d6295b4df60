//! An independent forward pass in f64 of the kinds of models whose gradients are checked by finite differences: written from
//! the papers' formulas, with nothing of the crate in it but what reads tensors.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tensorpress_model::Source;
use tensorpress_tensor::Tensor;
use tensorpress_tensor::ndarray::{Array2, Axis, s};

/// How a model differs from Llama.
#[derive(Clone, Copy)]
pub struct Kind {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub theta: f64,
    pub eps: f64,
    /// Gemma 2: norms of 1 + w, norms behind parts, GELU by tanh, scaled embeddings, caps.
    pub gemma: bool,
    /// Scores are multiplied by this.
    pub scale: f64,
    pub caps: Option<[f64; 2]>,
    /// A window in every so many-th block.
    pub window: Option<(usize, usize)>,
    /// Experts a token goes to, and whether factors are divided by their sum.
    pub experts: Option<(usize, bool)>,
}

/// What is added to the outputs of a layer in one window.
pub struct Nudge {
    pub layer: String,
    pub window: usize,
    pub by: Array2<f64>,
}

pub struct Slow {
    pub kind: Kind,
    pub blocks: usize,
    /// Every tensor by its name; vectors have one row.
    pub tensors: BTreeMap<String, Array2<f64>>,
    /// The matrix over the vocabulary, apart from the embedding also where it is the same tensor.
    pub head: Array2<f64>,
    pub nudge: Option<Nudge>,
    /// A layer whose inputs are kept, and those of each window.
    pub watch: Option<String>,
    pub inputs: RefCell<BTreeMap<usize, Array2<f64>>>,
    /// Where tokens stand and how many each stands for, if not one behind the other and for itself.
    standing: RefCell<Vec<(usize, f64)>>,
    /// What each token gives to each, summed over the heads, in every block.
    pub attended: RefCell<BTreeMap<usize, Array2<f64>>>,
}

impl Slow {
    pub fn new(source: &Source, kind: Kind) -> Self {
        let checkpoint = source.checkpoint();
        let tensors: BTreeMap<String, Array2<f64>> = checkpoint
            .names()
            .map(|name| {
                let values = checkpoint.tensor(name).unwrap().to_matrix().unwrap();
                let flat = checkpoint.tensor(name).unwrap().shape().len() == 1;
                let values = values.mapv(f64::from);
                let count = values.len();
                let values =
                    if flat { values.into_shape_with_order((1, count)).unwrap() } else { values };
                (name.to_owned(), values)
            })
            .collect();
        let head = tensors.get("lm_head.weight").unwrap_or(&tensors["model.embed_tokens.weight"]);
        let head = head.clone();
        let (nudge, watch, inputs) = (None, None, RefCell::default());
        let (standing, attended) = (RefCell::default(), RefCell::default());
        let blocks = source.blocks();
        Self { kind, blocks, tensors, head, nudge, watch, inputs, standing, attended }
    }

    /// Logits of the tokens that are left of a text, where behind some blocks each token becomes the mean of a group of those
    /// left by then (by their sizes), or goes: groups in the order of their last tokens.
    pub fn shortened(&self, ids: &[u32], behind: &[(usize, Vec<Vec<usize>>)]) -> Array2<f64> {
        let table = &self.tensors["model.embed_tokens.weight"];
        let rows: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        let mut x = table.select(Axis(0), &rows);
        *self.standing.borrow_mut() = (0..ids.len()).map(|at| (at, 1.0)).collect();
        for block in 0..self.blocks {
            x = self.block(0, block, x);
            let Some((_, groups)) = behind.iter().find(|(at, _)| *at == block) else { continue };
            let was = self.standing.take();
            let mut means = Array2::zeros((groups.len(), x.ncols()));
            let mut now = Vec::new();
            for (mut mean, group) in means.rows_mut().into_iter().zip(groups) {
                let size: f64 = group.iter().map(|token| was[*token].1).sum();
                for token in group {
                    mean.scaled_add(was[*token].1 / size, &x.row(*token));
                }
                now.push((group.iter().map(|token| was[*token].0).max().unwrap(), size));
            }
            x = means;
            *self.standing.borrow_mut() = now;
        }
        self.standing.take();
        self.norm("model.norm", &x).dot(&self.head.t())
    }

    fn stands(&self, token: usize) -> (usize, f64) {
        self.standing.borrow().get(token).copied().unwrap_or((token, 1.0))
    }

    /// The sum of -ln p of labels.
    pub fn loss(&self, windows: &[Vec<u32>], labels: &[Vec<Option<u32>>]) -> f64 {
        let each = windows.iter().zip(labels).enumerate();
        each.map(|(i, (ids, labels))| self.window(i, ids, labels)).sum()
    }

    fn window(&self, window: usize, ids: &[u32], labels: &[Option<u32>]) -> f64 {
        let table = &self.tensors["model.embed_tokens.weight"];
        let rows: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        let mut x = table.select(Axis(0), &rows);
        if self.kind.gemma {
            x *= f64::from((x.ncols() as f32).sqrt());
        }
        for block in 0..self.blocks {
            x = self.block(window, block, x);
        }
        let x = self.norm("model.norm", &x);
        let mut logits = x.dot(&self.head.t());
        self.nudged("head", window, &mut logits);
        let mut loss = 0.0;
        for (logits, label) in logits.rows().into_iter().zip(labels) {
            let Some(label) = label else { continue };
            let logits: Vec<f64> = logits.iter().map(|z| self.capped(*z, 1)).collect();
            let top = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = logits.iter().map(|z| (z - top).exp()).sum();
            loss += sum.ln() - (logits[*label as usize] - top);
        }
        loss
    }

    fn block(&self, window: usize, block: usize, mut x: Array2<f64>) -> Array2<f64> {
        let name = |part: &str| format!("model.layers.{block}.{part}");
        let h = self.norm(&name("input_layernorm"), &x);
        let mut a = self.attention(window, block, &h);
        let behind = if self.kind.gemma { "pre_feedforward_layernorm" } else { POST };
        if self.kind.gemma {
            a = self.norm(&name(POST), &a);
        }
        x += &a;
        let h = self.norm(&name(behind), &x);
        let routers = ["block_sparse_moe", "mlp"].map(name);
        let router =
            routers.iter().find(|r| self.tensors.contains_key(&format!("{r}.gate.weight")));
        let mut m = match router {
            Some(router) => self.mixture(window, router, &h),
            None => self.gated(window, &name("mlp"), ["gate_proj", "up_proj", "down_proj"], &h),
        };
        if self.kind.gemma {
            m = self.norm(&name("post_feedforward_layernorm"), &m);
        }
        x + m
    }

    fn attention(&self, window: usize, block: usize, h: &Array2<f64>) -> Array2<f64> {
        let Kind { heads, kv_heads, head_dim: d, .. } = self.kind;
        let linear =
            |m: &str, x| self.linear(window, &format!("model.layers.{block}.self_attn.{m}"), x);
        let (mut q, mut k, v) = (linear("q_proj", h), linear("k_proj", h), linear("v_proj", h));
        self.rotate(&mut q);
        self.rotate(&mut k);
        let tokens = h.nrows();
        let mut out = Array2::zeros((tokens, heads * d));
        let mut attended = Array2::zeros((tokens, tokens));
        let near = self
            .kind
            .window
            .filter(|(_, every)| block.is_multiple_of(*every))
            .map(|(near, _)| near);
        for head in 0..heads {
            let of = head / (heads / kv_heads);
            for t in 0..tokens {
                let first = near.map_or(0, |near| (t + 1).saturating_sub(near));
                let q = q.slice(s![t, head * d..(head + 1) * d]);
                let score = |j: usize| {
                    let k = k.slice(s![j, of * d..(of + 1) * d]);
                    self.capped(q.dot(&k) * self.kind.scale, 0) + self.stands(j).1.ln()
                };
                let scores: Vec<f64> = (first..=t).map(score).collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
                let sum: f64 = scores.iter().map(|z| (z - top).exp()).sum();
                for (j, z) in (first..=t).zip(&scores) {
                    let p = (z - top).exp() / sum;
                    *attended.get_mut([t, j]).unwrap() += p;
                    let v = v.slice(s![j, of * d..(of + 1) * d]);
                    out.slice_mut(s![t, head * d..(head + 1) * d]).scaled_add(p, &v);
                }
            }
        }
        self.attended.borrow_mut().insert(block, attended);
        linear("o_proj", &out)
    }

    fn rotate(&self, x: &mut Array2<f64>) {
        let d = self.kind.head_dim;
        let half = d / 2;
        for (t, mut row) in x.rows_mut().into_iter().enumerate() {
            for head in 0..row.len() / d {
                for i in 0..half {
                    let angle =
                        self.stands(t).0 as f64 * self.kind.theta.powf(-2.0 * i as f64 / d as f64);
                    let (a, b) = (head * d + i, head * d + half + i);
                    let (x, y) = (row[a], row[b]);
                    row[a] = x * angle.cos() - y * angle.sin();
                    row[b] = y * angle.cos() + x * angle.sin();
                }
            }
        }
    }

    fn gated(&self, window: usize, prefix: &str, names: [&str; 3], x: &Array2<f64>) -> Array2<f64> {
        let linear = |m: &str, x| self.linear(window, &format!("{prefix}.{m}"), x);
        let [gate, up, down] = names;
        let mut middle = linear(gate, x);
        middle.mapv_inplace(|z| match self.kind.gemma {
            true => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
                0.5 * z * (1.0 + inner.tanh())
            }
            false => z / (1.0 + (-z).exp()),
        });
        middle *= &linear(up, x);
        linear(down, &middle)
    }

    fn mixture(&self, window: usize, prefix: &str, x: &Array2<f64>) -> Array2<f64> {
        let (chosen, renormalised) = self.kind.experts.unwrap();
        let logits = self.linear(window, &format!("{prefix}.gate"), x);
        let mut y = Array2::zeros(x.dim());
        let mut of: Vec<Vec<(usize, f64)>> = vec![Vec::new(); logits.ncols()];
        for (t, row) in logits.rows().into_iter().enumerate() {
            let sum: f64 = row.iter().map(|z| z.exp()).sum();
            let mut best: Vec<(f64, usize)> =
                row.iter().enumerate().map(|(e, z)| (z.exp() / sum, e)).collect();
            best.sort_by(|a, b| b.0.total_cmp(&a.0));
            best.truncate(chosen);
            let total: f64 = best.iter().map(|(p, _)| p).sum();
            for (p, expert) in best {
                of[expert].push((t, if renormalised { p / total } else { p }));
            }
        }
        for (expert, tokens) in of.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            let rows: Vec<usize> = tokens.iter().map(|(t, _)| *t).collect();
            let mine = x.select(Axis(0), &rows);
            let prefix = format!("{prefix}.experts.{expert}");
            let old = self.tensors.contains_key(&format!("{prefix}.w1.weight"));
            let names =
                if old { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
            let made = self.gated(window, &prefix, names, &mine);
            for ((t, factor), made) in tokens.iter().zip(made.rows()) {
                y.row_mut(*t).scaled_add(*factor, &made);
            }
        }
        let shared = format!("{prefix}.shared_expert");
        if self.tensors.contains_key(&format!("{shared}.up_proj.weight")) {
            let mut made = self.gated(window, &shared, ["gate_proj", "up_proj", "down_proj"], x);
            let gate = self.linear(window, &format!("{shared}_gate"), x);
            for (mut row, z) in made.rows_mut().into_iter().zip(&gate) {
                row *= 1.0 / (1.0 + (-z).exp());
            }
            y += &made;
        }
        y
    }

    fn linear(&self, window: usize, name: &str, x: &Array2<f64>) -> Array2<f64> {
        let mut y = x.dot(&self.tensors[&format!("{name}.weight")].t());
        if let Some(bias) = self.tensors.get(&format!("{name}.bias")) {
            y += &bias.row(0);
        }
        let name = format!("{name}.weight");
        if self.watch.as_ref() == Some(&name) {
            self.inputs.borrow_mut().insert(window, x.clone());
        }
        self.nudged(&name, window, &mut y);
        y
    }

    fn nudged(&self, name: &str, window: usize, y: &mut Array2<f64>) {
        if let Some(nudge) = self.nudge.as_ref().filter(|n| n.layer == name && n.window == window) {
            *y += &nudge.by;
        }
    }

    fn norm(&self, name: &str, x: &Array2<f64>) -> Array2<f64> {
        let weight = self.tensors[&format!("{name}.weight")].row(0);
        let offset = if self.kind.gemma { 1.0 } else { 0.0 };
        let mut y = x.clone();
        for mut row in y.rows_mut() {
            let square = row.dot(&row) / row.len() as f64;
            let factor = 1.0 / (square + self.kind.eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(v, w)| *v *= factor * (w + offset));
        }
        y
    }

    fn capped(&self, z: f64, which: usize) -> f64 {
        self.kind.caps.map_or(z, |caps| caps[which] * (z / caps[which]).tanh())
    }
}

const POST: &str = "post_attention_layernorm";
