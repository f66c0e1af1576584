//! Where the tensors of a new file come from.

use std::collections::BTreeMap;

use bitnet_formats::{ModelConfig, TensorClass, TensorRole, TensorSpec};

use crate::checkpoint::{Checkpoint, TensorRef};
use crate::error::ConvertError;
use crate::family::Family;
use crate::groups::{QuantizedRows, TernaryGroups};
use crate::names::{checkpoint_tensors, tensor_name};
use crate::packed::{PackedRows, stored_rows};
use crate::rows::{StoredRows, WeightRows};

/// Gives every trained tensor of a model, streamed.
pub trait Source {
    /// The model.
    fn config(&self) -> &ModelConfig;

    /// Codes and scale of a ternary tensor.
    ///
    /// # Errors
    ///
    /// It cannot be read, or holds a value no tensor may hold.
    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError>;

    /// Rows of a dense matrix; of a vector, as its one row.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError>;
}

/// A checkpoint that holds exactly the tensors of a model.
#[derive(Debug)]
pub struct CheckpointSource<'c> {
    checkpoint: &'c Checkpoint,
    config: ModelConfig,
    family: Family,
}

impl<'c> CheckpointSource<'c> {
    /// Checks that every tensor of the model is there with its shape and type, and nothing else.
    ///
    /// # Errors
    ///
    /// The first tensor that is missing, misshapen, of the wrong type, or left over.
    pub fn new(
        checkpoint: &'c Checkpoint,
        config: ModelConfig,
        family: Family,
    ) -> Result<Self, ConvertError> {
        let mut inventory = Inventory::of(checkpoint);
        for tensor in checkpoint_tensors(&config) {
            let ternary = tensor.role.class() == TensorClass::Ternary;
            if family.is_packed() && ternary {
                inventory.take_packed(&tensor.name, tensor.rows, tensor.cols)?;
            } else {
                let found = inventory.take(&tensor.name, tensor.shape())?;
                StoredRows::new(found, tensor.cols)?;
            }
        }
        inventory.expect_empty()?;
        Ok(Self {
            checkpoint,
            config,
            family,
        })
    }

    /// Type in which the checkpoint stores the embedding.
    ///
    /// # Errors
    ///
    /// Never, for a source that was made.
    pub fn embedding_dtype(&self) -> Result<safetensors::Dtype, ConvertError> {
        Ok(self.tensor(TensorRole::Embedding, None)?.info.dtype)
    }

    fn tensor(
        &self,
        role: TensorRole,
        layer: Option<usize>,
    ) -> Result<TensorRef<'c>, ConvertError> {
        let name = tensor_name(role, layer).unwrap_or_default();
        find(self.checkpoint, &name, Vec::new)
    }

    fn packed(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let tensor = self.tensor(spec.role, spec.layer)?;
        let name = scale_name(&tensor.info.name);
        let scale = read_scale(find(self.checkpoint, &name, || vec![1])?)?;
        let rows = PackedRows::new(tensor, spec.rows, spec.cols)?;
        Ok(TernaryGroups::new(
            Box::new(rows),
            scale,
            &self.config,
            spec,
        ))
    }

    fn master(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let tensor = self.tensor(spec.role, spec.layer)?;
        let (rows, cols) = (tensor.info.shape[0], tensor.info.shape[1]);
        let rows = QuantizedRows::new(StoredRows::new(tensor, cols)?, rows, cols)?;
        let scale = rows.scale();
        Ok(TernaryGroups::new(
            Box::new(rows),
            scale,
            &self.config,
            spec,
        ))
    }
}

impl Source for CheckpointSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        if self.family.is_packed() {
            self.packed(spec)
        } else {
            self.master(spec)
        }
    }

    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError> {
        let tensor = self.tensor(spec.role, spec.layer)?;
        Ok(Box::new(StoredRows::new(tensor, spec.cols)?))
    }
}

/// Name of the scale beside a packed matrix.
fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

fn read_scale(tensor: TensorRef<'_>) -> Result<f32, ConvertError> {
    let mut scale = [0.0];
    StoredRows::new(tensor, 1)?.read(0, &mut scale)?;
    match scale {
        [value] if value > 0.0 => Ok(value),
        [value] => Err(ConvertError::BadScale {
            tensor: tensor.info.name.clone(),
            value,
        }),
    }
}

fn find<'c>(
    checkpoint: &'c Checkpoint,
    name: &str,
    expected: impl FnOnce() -> Vec<usize>,
) -> Result<TensorRef<'c>, ConvertError> {
    checkpoint
        .tensor(name)
        .ok_or_else(|| ConvertError::MissingTensor {
            tensor: name.to_owned(),
            expected: expected(),
        })
}

/// The tensors of a checkpoint that nothing has asked for yet.
struct Inventory<'c> {
    left: BTreeMap<&'c str, TensorRef<'c>>,
}

impl<'c> Inventory<'c> {
    fn of(checkpoint: &'c Checkpoint) -> Self {
        let tensors = checkpoint.names().filter(|name| !is_derived(name));
        let left = tensors.filter_map(|name| Some((name, checkpoint.tensor(name)?)));
        Self {
            left: left.collect(),
        }
    }

    fn take(&mut self, name: &str, expected: Vec<usize>) -> Result<TensorRef<'c>, ConvertError> {
        let tensor = name.to_owned();
        let Some(found) = self.left.remove(name) else {
            return Err(ConvertError::MissingTensor { tensor, expected });
        };
        if found.info.shape != expected {
            let found = found.info.shape.clone();
            return Err(ConvertError::Shape {
                tensor,
                expected,
                found,
            });
        }
        Ok(found)
    }

    /// Takes packed codes and their scale.
    fn take_packed(&mut self, name: &str, rows: usize, cols: usize) -> Result<(), ConvertError> {
        let shape = vec![stored_rows(name, rows)?, cols];
        PackedRows::new(self.take(name, shape)?, rows, cols)?;
        StoredRows::new(self.take(&scale_name(name), vec![1])?, 1)?;
        Ok(())
    }

    fn expect_empty(&self) -> Result<(), ConvertError> {
        match self.left.keys().next() {
            Some(name) => Err(ConvertError::ExtraTensor {
                tensor: (*name).to_owned(),
                count: self.left.len(),
            }),
            None => Ok(()),
        }
    }
}

/// Buffers that some exporters store although they follow from the configuration.
fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
