use tensorpress_tensor::Result;
use tensorpress_tensor::stage::{Keys, Knobs, Row};

use super::{Bitmap, StoreForm};
use crate::stage::{KvPart, KvRole};

/// Mustafar (Joo et al., 2025): the largest entries of every key and value, the newest tokens whole.
#[derive(Debug, Clone, Copy)]
struct Mustafar {
    sparsity: f64,
    keys: Option<f64>,
    values: Option<f64>,
    map: Bitmap,
}

impl Default for Mustafar {
    fn default() -> Self {
        let sparsity = 0.5;
        Self { sparsity, keys: None, values: None, map: Bitmap::new(sparsity) }
    }
}

impl Knobs for Mustafar {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float(
            "sparsity",
            &mut self.sparsity,
            0.0..=1.0,
            "share of entries that goes, below 1",
        )?;
        let about = "the same of keys alone";
        keys.optional_float("key_sparsity", &mut self.keys, 0.0..=1.0, about)?;
        let about = "the same of values alone";
        keys.optional_float("value_sparsity", &mut self.values, 0.0..=1.0, about)?;
        let map = &mut self.map;
        map.keys = self.keys.unwrap_or(self.sparsity);
        map.values = self.values.unwrap_or(self.sparsity);
        let about =
            "tokens within which entries of a channel of values compete; else those of a token do";
        keys.optional("value_group", &mut map.value_group, 1..=1 << 20, about)?;
        keys.int("window", &mut map.window, 0..=1 << 20, "newest tokens that are whole")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut map.margin, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "holds the largest entries of keys and values, the newest tokens whole";
    let build = |mustafar: Mustafar, _| Ok(KvPart::Store(StoreForm::Bitmap(mustafar.map)));
    Row::new("mustafar", KvRole::Store, about, Mustafar::default, build)
}
