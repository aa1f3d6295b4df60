//! Integer panels: against the official implementation, and every instruction set against plain loops.

use ndarray::{Array2, ArrayView2};
use tensorpress_tensor::kernels::{Isa, pack_bits, packed_len};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, ndarray};

use super::int::{Axis, IntRows, IntShape, Role};
use super::windowed::PackedRows;

fn floats(file: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("a tensor of the file");
    let mut out = vec![0.0; tensor.bytes().len() / 4];
    DType::F32.read_f32(tensor.bytes(), &mut out).expect("f32");
    out
}

/// Codes, words, scales, minima and values of KIVI's official code.
#[test]
fn golden_kivi() {
    let Some(path) = data::find("golden/kv/kivi_g32.safetensors") else { return };
    let file = Checkpoint::open(path).expect("a golden file");
    let (heads, all, dim) = (4, 176, 32);
    let mut checked = 0;
    for (role, input, short, packed) in
        [(Role::Keys, "k", "key", 160), (Role::Values, "v", "val", 144)]
    {
        let x = floats(&file, &format!("in.{input}"));
        for bits in [2, 4] {
            let name = |what: &str| format!("g32_R32.{short}_b{bits}.{what}");
            let [scale, min, value] = ["scale", "min", "dequant"].map(|n| floats(&file, &name(n)));
            let codes = file.tensor(&name("codes")).expect("codes");
            let words = file.tensor(&name("packed_i32")).expect("words");
            for h in 0..heads {
                let axis = if role == Role::Keys { Axis::Channel } else { Axis::Token };
                let shape = IntShape {
                    role,
                    axis,
                    bits,
                    group: 32,
                    dim,
                    dtype: DType::F32,
                    sliding: false,
                };
                let mut rows = IntRows::new(shape);
                assert_eq!(rows.prefix(all, 32), packed);
                let x = &x[h * all * dim..][..packed * dim];
                rows.push(ArrayView2::from_shape((packed, dim), x).expect("rows"));
                let mut decoded = Array2::zeros((packed, dim));
                rows.decode(0..packed, decoded.view_mut());
                let mut mine = Array2::zeros((packed, dim));
                for t in 0..packed {
                    for c in 0..dim {
                        let at = (h * packed + t) * dim + c;
                        let (code, s, m) = rows.entry(t, c);
                        let grid = match role {
                            Role::Keys => (h * packed / 32 + t / 32) * dim + c,
                            Role::Values => h * packed + t,
                        };
                        assert_eq!(code, codes.bytes()[at], "{short} {bits}: [{h}, {t}, {c}]");
                        assert_eq!(
                            (s, m),
                            (scale[grid], min[grid]),
                            "{short} {bits}: [{h}, {t}, {c}]"
                        );
                        assert!((decoded[[t, c]] - value[at]).abs() <= 1e-6);
                        mine[[t, c]] = code;
                    }
                }
                // KIVI's words run along the tokens for keys, along the channels for values.
                let per = 32 / bits as usize;
                let ours: Vec<u8> = match role {
                    Role::Keys => {
                        let order = (0..packed / per).flat_map(|w| (0..dim).map(move |c| (w, c)));
                        order
                            .flat_map(|(w, c)| (0..per).map(move |i| (w * per + i, c)))
                            .map(|at| mine[at])
                            .collect()
                    }
                    Role::Values => mine.iter().copied().collect(),
                };
                let mut bytes = vec![0; packed_len(ours.len(), bits)];
                pack_bits(&ours, bits, &mut bytes);
                assert_eq!(
                    bytes,
                    words.bytes()[h * bytes.len()..][..bytes.len()],
                    "{short} {bits}: words"
                );
                checked += 1;
            }
        }
    }
    println!("kivi: 1 file, {checked} heads of codes, words, scales, minima and values equal");
}

#[test]
fn every_instruction_set_multiplies_alike() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(3);
    let mut noise = |n: usize| (0..n).map(|_| random.next_f64() as f32 - 0.5).collect::<Vec<_>>();
    for bits in [2, 4, 8] {
        for (dim, group, n) in [
            (8, 16, 32),
            (32, 16, 40),
            (48, 48, 96),
            (96, 32, 300),
            (128, 128, 256),
            (33, 64, 64),
            (576, 64, 64),
        ] {
            for (role, axis) in [
                (Role::Keys, Axis::Channel),
                (Role::Keys, Axis::Token),
                (Role::Values, Axis::Token),
            ] {
                let group = if axis == Axis::Token { group.min(dim) } else { group };
                let shape =
                    IntShape { role, axis, bits, group, dim, dtype: DType::F16, sliding: false };
                if super::form::check_int(&shape).is_err() {
                    continue;
                }
                let n = if axis == Axis::Channel { n / group * group } else { n };
                let mut rows = IntRows::new(shape);
                rows.push(ArrayView2::from_shape((n, dim), &noise(n * dim)).expect("rows"));
                let mut dense = Array2::zeros((n, dim));
                rows.decode(0..n, dense.view_mut());
                for queries in [1, 2, 3, 4, 7] {
                    let (q, w) = (noise(queries * dim), noise(queries * n));
                    let q = ArrayView2::from_shape((queries, dim), &q).expect("queries");
                    let w = ArrayView2::from_shape((queries, n), &w).expect("weights");
                    for isa in Isa::available() {
                        let (out, exact) = if role == Role::Keys {
                            let mut out = Array2::from_elem((queries, n), f32::NAN);
                            let to = out.as_slice_mut().expect("standard layout");
                            rows.dots_on(isa, q, 0..n, to, n);
                            (out, q.dot(&dense.t()))
                        } else {
                            let mut out = Array2::zeros((queries, dim));
                            let exact = w.dot(&dense);
                            let w = w.as_slice().expect("standard layout");
                            rows.mix_on(isa, w, n, 0..n, out.view_mut());
                            (out, exact)
                        };
                        near_rows(&out, &exact, &format!("{isa} {shape:?} {n} {queries}"));
                    }
                }
            }
        }
    }
}

/// Token by token, as caches grow: full pages have room for what is in them, and no more.
#[test]
fn full_pages_reserve_what_they_hold() {
    let (dim, group, dtype) = (96, 32, DType::F16);
    for (role, axis) in [(Role::Keys, Axis::Channel), (Role::Values, Axis::Token)] {
        for bits in [2, 4, 8] {
            let shape = IntShape { role, axis, bits, group, dim, dtype, sliding: false };
            let mut rows = IntRows::new(shape);
            let step = if axis == Axis::Channel { group } else { 1 };
            for _ in 0..512 / step {
                rows.push(Array2::ones((step, dim)).view());
            }
            let grids = 512 * dim / 32 * 2 * 2;
            assert_eq!(rows.bytes(), (512 * dim * bits as usize / 8 + grids) as u64);
            assert_eq!(rows.reserved() as u64, rows.bytes(), "{role:?} of {bits} bits");
        }
    }
}

fn near_rows(found: &Array2<f32>, exact: &Array2<f32>, what: &str) {
    for (found, exact) in found.rows().into_iter().zip(exact.rows()) {
        let largest = exact.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for (found, exact) in found.iter().zip(exact) {
            assert!((found - exact).abs() <= 2e-4 * largest, "{what}: {found} against {exact}");
        }
    }
}

#[test]
fn counts_are_what_this_machine_can_count() {
    for n in [0, 1, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, (1 << 40) - 1, 1 << 40, u64::MAX] {
        let found = super::rows::count(&serde_json::json!({ "len": n }), "len");
        let expected = usize::try_from(n).ok().filter(|_| n < 1 << 40);
        match (found, expected) {
            (Ok(found), expected) => assert_eq!(Some(found), expected),
            (Err(e), None) => assert_eq!(e.kind(), tensorpress_tensor::ErrorKind::Corruption),
            (Err(e), Some(_)) => panic!("{n}: {e}"),
        }
    }
}
/// A golden file, where there is one.
pub(crate) fn golden(name: &str) -> Option<Checkpoint> {
    let path = data::find(&format!("golden/kv/{name}.safetensors"))?;
    Some(Checkpoint::open(path).expect("a golden file"))
}

/// `[heads, tokens, dim]` of a file as `[tokens, heads x dim]`.
pub(crate) fn rows_of(
    file: &Checkpoint,
    name: &str,
    heads: usize,
    n: usize,
    dim: usize,
) -> Array2<f32> {
    let x = floats(file, name);
    Array2::from_shape_fn((n, heads * dim), |(t, c)| x[(c / dim * n + t) * dim + c % dim])
}

/// Equal but for a share of the largest.
pub(crate) fn near(a: &[f32], b: &[f32], tolerance: f32, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let largest = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{what}: {i}: {a} against {b}");
    }
}
