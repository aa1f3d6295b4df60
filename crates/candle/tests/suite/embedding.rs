//! Rows of tables.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor};
use tensorpress_candle::{Embedding, Linear};
use tensorpress_tensor::node::decode;

use crate::common::{compressed, demo, nodes};

fn ids(values: &[u32], dims: &[usize]) -> Tensor {
    Tensor::from_slice(values, dims, &Device::Cpu).unwrap()
}

#[test]
fn rows_are_those_of_the_decoded_table() {
    for (kind, node) in nodes([37, 64]) {
        let values = decode(&*node).unwrap();
        let table = Embedding::new(node);
        let row = |id: u32| values.row(id as usize).to_vec();
        for (dims, some) in [
            (vec![4], vec![0, 36, 5, 5]),
            (vec![2, 3], vec![1, 2, 3, 4, 5, 6]),
            (vec![1, 1, 1], vec![7]),
            (vec![], vec![8]),
            (vec![0], vec![]),
            (vec![2, 0], vec![]),
        ] {
            let x = ids(&some, &dims);
            let expected: Vec<f32> = some.iter().flat_map(|id| row(*id)).collect();
            for dtype in [DType::U8, DType::U32, DType::I64] {
                let y = table.forward(&x.to_dtype(dtype).unwrap()).unwrap();
                assert_eq!(y.dims(), [&dims[..], &[64]].concat(), "{kind}");
                assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap() == expected, "{kind}");
            }
            for dtype in [DType::F16, DType::BF16] {
                let narrow = table.clone().with_dtype(dtype).unwrap().forward(&x).unwrap();
                let expected = Tensor::from_slice(&expected, expected.len(), &Device::Cpu).unwrap();
                let expected = expected.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
                assert_eq!(narrow.dtype(), dtype, "{kind}");
                let narrow = narrow.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                assert!(
                    narrow.to_vec1::<f32>().unwrap() == expected.to_vec1::<f32>().unwrap(),
                    "{kind}"
                );
            }
        }
        // Any strides.
        let x = ids(&[1, 2, 3, 4, 5, 6], &[2, 3]);
        let turned = table.forward(&x.t().unwrap()).unwrap();
        let expected: Vec<f32> = [1, 4, 2, 5, 3, 6].into_iter().flat_map(row).collect();
        assert!(turned.flatten_all().unwrap().to_vec1::<f32>().unwrap() == expected, "{kind}");
        let part = table.forward(&x.narrow(1, 1, 1).unwrap()).unwrap();
        let expected: Vec<f32> = [2, 5].into_iter().flat_map(row).collect();
        assert!(part.flatten_all().unwrap().to_vec1::<f32>().unwrap() == expected, "{kind}");
    }
}

#[test]
fn ids_that_are_no_rows() {
    let (_, node) = nodes([37, 64]).remove(0);
    let table = Embedding::new(node);
    for (x, word) in [
        (ids(&[3, 37], &[2]), "37 in a vocabulary of 37"),
        (ids(&[u32::MAX], &[1]), "4294967295 in a vocabulary"),
        (Tensor::new(&[-1i64], &Device::Cpu).unwrap(), "-1 in a vocabulary"),
        (Tensor::new(&[1f32], &Device::Cpu).unwrap(), "ids of F32"),
    ] {
        let error = table.forward(&x).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let error = table.with_dtype(DType::I64).unwrap_err().to_string();
    assert!(error.contains("I64"), "{error}");
}

#[test]
fn one_matrix_is_table_and_head() {
    let folder = tempfile::tempdir().unwrap();
    let source = compressed(&demo(), "rtn(bits=8, group=64)", &folder.path().join("w8"));
    let name = source.embedding().unwrap().table().name().to_owned();
    let head = Linear::load_prepacked(&source, &name).unwrap();
    let table = Embedding::new(head.node().clone());
    assert!(Arc::ptr_eq(table.node(), head.node()));
    let x = table.forward(&ids(&[5], &[1])).unwrap();
    let stored = decode(&*source.weight(&name).unwrap()).unwrap();
    assert!(x.get(0).unwrap().to_vec1::<f32>().unwrap() == stored.row(5).to_vec());
    assert_eq!(head.forward(&x).unwrap().dims(), [1, source.config().vocab]);
    let loaded = Embedding::load(&source, &name).unwrap();
    assert_eq!(loaded.node().shape(), head.node().shape());
    assert!(Embedding::load(&source, "no.such.weight").is_err());
}
