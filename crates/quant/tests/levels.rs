//! Tables of levels against bitsandbytes, and the laws on them.

use tensorpress_quant::{Dynamic8, Fp4, LevelTable, Nf4};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Child, KnownLevels, Mask, SymbolBuf, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::testing::laws::{check_damage, check_node};
use tensorpress_tensor::{
    Checkpoint, Compress, DynCompress, ErrorKind, Group, Node, PartKind, Registry, Storage, Target,
    Tensor,
};

fn compress(method: &impl Compress<Node = LevelTable>, weight: &Array2<f32>) -> LevelTable {
    method.compress(weight.view(), &Calibration::none(weight.ncols())).expect("finite").node
}

fn codes(node: &LevelTable) -> Vec<u8> {
    let mut buffer = SymbolBuf::of(node.codes());
    let codes = buffer.read(node.codes(), 0..node.shape()[0]).expect("packed");
    codes.iter().map(|code| code as u8).collect()
}

/// The bytes of a tensor.
fn bytes(file: &Checkpoint, name: &str) -> Vec<u8> {
    file.tensor(name).expect("a tensor of the file").bytes().to_vec()
}

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    bytes(file, name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The values of a slot.
fn beside(node: &LevelTable, slot: usize) -> Vec<f32> {
    node.beside().expect("stored floats")[slot].to_vec()
}

/// Codes of an official file: a byte each, or two to a byte, the first in its high half.
fn official_codes(file: &Checkpoint, prefix: &str, levels: usize) -> Vec<u8> {
    if levels == 256 {
        let name =
            if file.contains("codes") { "codes".to_owned() } else { format!("{prefix}packed") };
        return bytes(file, &name);
    }
    bytes(file, &format!("{prefix}packed")).iter().flat_map(|b| [b >> 4, b & 15]).collect()
}

/// A scale that is a leaf: codes, magnitudes of its blocks, and offset, each equal to what is stored.
fn check_nested(node: &LevelTable, file: &Checkpoint, [codes_of, magnitudes, offset]: [&str; 3]) {
    let Child::Node(scales) = node.child(1) else { panic!("scales are a node") };
    let described = scales.describe();
    assert_eq!(described["node"], "levels.v1");
    assert_eq!(described["levels"]["name"], "dynamic8");
    let mut sink = std::collections::BTreeMap::new();
    scales.parts("", &mut Collect(&mut sink)).expect("in memory");
    assert_eq!(sink["codes"], bytes(file, codes_of), "codes of the scales");
    assert_eq!(sink["scales.values"], bytes(file, magnitudes), "magnitudes of their blocks");
    assert_eq!(sink["offset.values"], bytes(file, offset), "their mean");
}

struct Collect<'a>(&'a mut std::collections::BTreeMap<String, Vec<u8>>);

impl tensorpress_tensor::PartSink for Collect<'_> {
    fn part(&mut self, part: tensorpress_tensor::Part<'_>) -> tensorpress_tensor::Result<()> {
        self.0.insert(part.name, part.bytes.into_owned());
        Ok(())
    }
}

#[test]
fn codes_and_scales_are_those_of_bitsandbytes() {
    let Some(files) = Golden::all("bnb") else { return };
    for golden in &files {
        let block = golden.param("blocksize").as_u64().expect("a block size") as usize;
        let double = golden.flag("compress_statistics");
        let weight = &golden.layer.weight;
        let kind = golden.param("quant_type");
        let (node, table) = match kind.as_str() {
            Some("nf4") => {
                let method = Nf4::default().with_block(block).with_double_quant(double);
                (compress(&method, weight), KnownLevels::Nf4)
            }
            Some("fp4") => {
                let method = Fp4::default().with_block(block).with_double_quant(double);
                (compress(&method, weight), KnownLevels::Fp4)
            }
            _ => (compress(&Dynamic8::default().with_block(block), weight), KnownLevels::Dynamic8),
        };
        assert_eq!(beside(&node, 0), floats(&golden.file, "code"), "{}: levels", golden.name);
        let official = official_codes(&golden.file, "", table.levels().len());
        assert!(codes(&node) == official, "{}: codes", golden.name);
        if double {
            check_nested(&node, &golden.file, ["absmax", "state2_absmax", "offset"]);
            let inner = floats(&golden.file, "state2_code");
            assert_eq!(KnownLevels::Dynamic8.levels(), inner, "levels of the scales");
        } else {
            let absmax = floats(&golden.file, "absmax");
            assert_eq!(beside(&node, 1), absmax, "{}: absmax", golden.name);
        }
        let decoded = decode(&node).expect("decodes");
        let ours = golden.layer.output_error(decoded.view());
        let stated = golden.figure("output_rel_err").expect("a figure");
        assert!((ours / stated - 1.0).abs() < 1e-5, "{}: {ours} vs {stated}", golden.name);
        println!("{}: codes, scales and levels equal, output error {ours:.6}", golden.name);
    }
    println!("golden files checked: bnb {}", files.len());
    assert!(files.len() >= 6, "golden vectors are missing");
}

/// Rows that are no multiple of the block, every block size, double quantisation, and points on the middles of levels.
#[test]
fn formats_are_those_of_bitsandbytes() {
    let Some(folder) = data::find("golden/formats") else { return };
    let open = |name: &str| Checkpoint::open(folder.join(name)).expect("a golden file");
    let matrix = |file: &Checkpoint, name: &str| {
        file.tensor(name).expect("a tensor").to_matrix().expect("floats")
    };
    let mut checked = 0;
    let mut check = |node: LevelTable, file: &Checkpoint, prefix: &str, nested: bool| {
        let levels = beside(&node, 0).len();
        let official = official_codes(file, prefix, levels);
        let ours = codes(&node);
        assert!(ours == official[..ours.len()], "{prefix} codes of {levels} levels");
        if nested {
            let names =
                ["absmax_u8", "nested_absmax", "offset"].map(|name| format!("{prefix}{name}"));
            check_nested(&node, file, names.each_ref().map(String::as_str));
        } else {
            assert_eq!(beside(&node, 1), floats(file, &format!("{prefix}absmax")), "{prefix}");
        }
        let decoded = decode(&node).expect("decodes");
        let expected = floats(file, &format!("{prefix}dequant"));
        assert!(decoded.iter().eq(&expected), "{prefix} decoded values of {levels} levels");
        checked += 1;
    };
    for (name, blocks) in [("bnb_nf4", [64, 128, 256]), ("bnb_fp4", [64, 128, 256])] {
        let file = open(&format!("{name}.safetensors"));
        let node = |input: &str, block: usize, double: bool| {
            let weight = matrix(&file, input);
            if name == "bnb_nf4" {
                compress(&Nf4::default().with_block(block).with_double_quant(double), &weight)
            } else {
                compress(&Fp4::default().with_block(block).with_double_quant(double), &weight)
            }
        };
        for block in blocks {
            check(node("in", block, false), &file, &format!("b{block}."), false);
        }
        check(node("in", 64, true), &file, "dq64.", true);
        check(node("sweep.in", 64, false), &file, "sweep.", false);
    }
    let file = open("bnb_8bit_blockwise.safetensors");
    let weight = matrix(&file, "in");
    check(compress(&Dynamic8::default(), &weight), &file, "", false);
    check(compress(&Dynamic8::default().with_block(4096), &weight), &file, "b4096.", false);
    println!("golden cases checked: bnb formats {checked}");
}

#[test]
fn tables_obey_the_laws() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(3);
    for (rows, cols) in [(0, 0), (0, 8), (8, 0), (1, 1), (3, 7), (17, 33), (16, 64), (40, 300)] {
        let weight = Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5);
        for double in [false, true] {
            for block in [5, 64, 1 << 20] {
                let nf4 = Nf4::default().with_block(block).with_double_quant(double);
                let fp4 = Fp4::default().with_block(block).with_double_quant(double);
                let dynamic8 = Dynamic8::default().with_block(block).with_double_quant(double);
                for node in
                    [compress(&nf4, &weight), compress(&fp4, &weight), compress(&dynamic8, &weight)]
                {
                    check_node(node.boxed(), &Registry::default(), 1e-4);
                }
            }
        }
    }
    let weight = Array2::from_shape_fn((12, 30), |_| random.next_f64() as f32 - 0.5);
    check_damage(&compress(&Nf4::default(), &weight), &Registry::default());
}

/// 4.5 bits a weight with scales in f32, 4.127 with quantised ones; a support leaves out what it drops.
#[test]
fn sizes_are_as_stated() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(4);
    let weight = Array2::from_shape_fn((256, 512), |_| random.next_f64() as f32 - 0.5);
    let bits = |node: &LevelTable| Storage::of(node).unwrap().bits() as f64 / 131_072.0;
    assert_eq!(bits(&compress(&Nf4::default().with_double_quant(false), &weight)), 4.5);
    let both = 4.0 + 8.0 / 64.0 + (32.0 * 8.0 + 32.0) / 131_072.0;
    assert_eq!(bits(&compress(&Nf4::default(), &weight)), both);
    assert_eq!(bits(&compress(&Dynamic8::default(), &weight)), 8.0 + 32.0 / 256.0);

    let keep = Array2::from_shape_fn((256, 512), |(r, c)| (r + c) % 4 == 0);
    let mask = Mask::from_bools(keep.view());
    let mut target = Target::new("w", weight.view());
    target.mask = Some(&mask);
    let group = Group::single(target, Calibration::none(512));
    let node = Nf4::default().compress_group_dyn(group).unwrap().layers.remove(0).node;
    let masked = tensorpress_tensor::node::Masked::new(mask.clone(), node).unwrap();
    assert_eq!(Storage::of(&masked).unwrap().bytes_of(PartKind::Codes), 32_768 / 2);
    for ((at, w), decoded) in weight.indexed_iter().zip(&decode(&masked).unwrap()) {
        assert!(if keep[at] { (w - decoded).abs() < 0.1 } else { *decoded == 0.0 }, "{at:?}");
    }
}

#[test]
fn bad_weights_and_blocks_are_named() {
    let mut weight = Array2::zeros((4, 8));
    let blind = Calibration::none(8);
    let error = Nf4::default().with_block(0).compress(weight.view(), &blind).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("1 and more"), "{error}");
    assert!(decode(&compress(&Fp4::default(), &weight)).unwrap().iter().all(|w| *w == 0.0));
    weight[[2, 3]] = f32::NAN;
    let error = Dynamic8::default().compress(weight.view(), &blind).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.to_string().contains("[2, 3]"), "{error}");
}
