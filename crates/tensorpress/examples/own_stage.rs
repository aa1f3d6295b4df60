//! A method and a node of one's own: in a recipe, through the pipeline, written and read back by name.

use std::ops::Range;
use std::sync::Arc;

use tensorpress::model::embedded;
use tensorpress::pipeline::CalibrationText;
use tensorpress::prelude::*;
use tensorpress::tensor::ndarray::{Array1, ArrayView1, ArrayViewMut2};
use tensorpress::tensor::node::registry::{field, shape_field};
use tensorpress::tensor::node::{Json, Mask, NodeReader, PlaneMap, join};
use tensorpress::tensor::stage::{Keys, Knobs, Row};
use tensorpress::tensor::stats::Needs;
use tensorpress::tensor::{
    Accum, Compressed, CompressedGroup, Part, PartKind, PartSink, Registry, Scratch, Tensor,
};

/// Every weight of a row is the row's mean times a strength: as bad a method as can be.
#[derive(Debug, Clone)]
struct Flat {
    strength: f32,
}

impl Knobs for Flat {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("strength", &mut self.strength, 0.0..=1.0, "what means are multiplied by")
    }
}

impl Method for Flat {
    fn id(&self) -> &'static str {
        "flat"
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }
}

impl Compress for Flat {
    type Node = Rows;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Rows>> {
        let flatten = |target: &Target<'_>| {
            target.check_finite()?;
            let mean = |row: ArrayView1<'_, f32>| row.mean().unwrap_or(0.0) * self.strength;
            let levels = target.weight.rows().into_iter().map(mean).collect();
            Ok(Compressed::new(Rows { cols: target.weight.ncols(), levels }))
        };
        Ok(CompressedGroup::new(group.targets.iter().map(flatten).collect::<Result<_>>()?))
    }
}

/// The node: one f32 a row.
#[derive(Debug)]
struct Rows {
    cols: usize,
    levels: Array1<f32>,
}

impl Rows {
    fn read(reader: &NodeReader<'_>, json: &Json, prefix: &str) -> Result<Box<dyn Node>> {
        let [rows, cols] = shape_field(json)?;
        let levels = reader.part(&join(prefix, &field::<String>(json, "levels")?))?.to_matrix()?;
        if levels.len() != rows {
            return Err(Error::corruption(format!("{} levels of {rows} rows", levels.len())));
        }
        Ok(Rows { cols, levels: levels.into_iter().collect() }.boxed())
    }
}

impl Node for Rows {
    fn shape(&self) -> [usize; 2] {
        [self.levels.len(), self.cols]
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        _: &mut Scratch,
    ) -> Result<()> {
        for (mut out, row) in out.rows_mut().into_iter().zip(rows) {
            match accum {
                Accum::Replace => out.fill(self.levels[row]),
                Accum::Add => out += self.levels[row],
            }
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        serde_json::json!({ "node": "example.flat.v1", "shape": self.shape(), "levels": "levels" })
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let bytes: Vec<u8> = self.levels.iter().flat_map(|level| level.to_le_bytes()).collect();
        sink.part(Part {
            name: join(prefix, "levels"),
            kind: PartKind::Values,
            dtype: DType::F32,
            shape: vec![1, self.levels.len()],
            bytes: bytes.into(),
        })
    }

    fn map_planes(self: Box<Self>, _: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Ok(self)
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Ok(self)
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
}

/// Everything this workspace has, and ours.
fn ours() -> Result<Registry> {
    let mut registry = registry();
    registry.add_node("example.flat.v1", Rows::read)?;
    let about = "every weight becomes its row's mean";
    registry.stages_mut().add(Row::method("flat", about, || Flat { strength: 1.0 }))?;
    Ok(registry)
}

fn main() -> Result<()> {
    let registry = ours()?;
    let recipe = "flat(strength=0.5) | residual(gptq(bits=4, group=64)) | coded(rans)";
    let recipe = Recipe::parse_with(recipe, &registry)?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("flat");
    let report = Compressor::new(recipe)
        .with_registry(registry.clone())
        .with_calibration(CalibrationText::new(embedded::CALIBRATION).with_windows(4))
        .run(&Source::demo(&registry)?, &out)?;
    println!("{:.3} bits a weight", report.bits_per_weight);
    let model = Source::open(&out, &registry)?;
    assert!(model.trees().values().all(|tree| tree.to_string().contains("example.flat.v1")));
    model.decoder()?.materialise()?;
    let stranger = Source::open(&out, &tensorpress::registry())?;
    let unread = stranger.decoder().and_then(|decoder| decoder.materialise());
    assert!(unread.is_err(), "a node that nobody knows");
    Ok(())
}
