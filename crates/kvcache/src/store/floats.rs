use tensorpress_tensor::DType;
use tensorpress_tensor::stage::Row;

use super::StoreForm;
use crate::stage::{KvPart, KvRole};

/// A stage for each float type.
pub(super) fn stages() -> [Row<KvPart>; 3] {
    [
        row("f32", DType::F32, "holds every value exactly; so does a recipe without a store"),
        row("f16", DType::F16, "holds values in half precision"),
        row("bf16", DType::BF16, "holds values in bfloat16"),
    ]
}

fn row(name: &'static str, dtype: DType, about: &'static str) -> Row<KvPart> {
    let build = move |(), _| Ok(KvPart::Store(StoreForm::Float(dtype)));
    Row::new(name, KvRole::Store, about, || (), build)
}
