//! Where the tensors of a new file come from.

use std::collections::BTreeMap;

use bitnet_formats::{ModelConfig, TensorClass, TensorRole, TensorSpec};

use crate::checkpoint::{Checkpoint, TensorRef};
use crate::config_json::CheckpointConfig;
use crate::error::ConvertError;
use crate::family::{Family, WeightForm};
use crate::groups::{Arithmetic, CodeRows, DequantizedRows, QuantizedRows, TernaryGroups};
use crate::names::Naming;
use crate::packed::{PackedRows, ROWS_PER_BYTE, stored_rows};
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

    /// Feed-forward neurons of each block: as many as the configuration says, unless some are pruned.
    fn ffn_widths(&self) -> Vec<usize> {
        vec![self.config().intermediate_size; self.config().n_layers]
    }

    /// The `n` inverse rotary frequencies: those of the model's base, unless the source has its own.
    fn inv_freq(&self, n: usize) -> Vec<f32> {
        self.config().rope.inv_freq(n)
    }
}

/// A checkpoint that holds exactly the tensors of a model.
#[derive(Debug)]
pub struct CheckpointSource<'c> {
    checkpoint: &'c Checkpoint,
    config: ModelConfig,
    weights: WeightForm,
    naming: Naming,
}

impl<'c> CheckpointSource<'c> {
    /// Checks that every tensor of the model is there with its shape and type, and nothing else.
    ///
    /// # Errors
    ///
    /// The first tensor that is missing, misshapen, of the wrong type, or left over.
    pub fn new(
        checkpoint: &'c Checkpoint,
        config: &CheckpointConfig,
    ) -> Result<Self, ConvertError> {
        let naming = naming(checkpoint, config.family);
        let mut inventory = Inventory::of(checkpoint);
        for tensor in naming.checkpoint_tensors(&config.model) {
            let ternary = tensor.role.class() == TensorClass::Ternary;
            if config.weights.is_packed() && ternary {
                inventory.take_packed(&tensor.name, tensor.rows, tensor.cols)?;
            } else {
                let found = inventory.take(&tensor.name, tensor.shape())?;
                StoredRows::new(found, tensor.cols)?;
            }
        }
        inventory.expect_empty()?;
        Ok(Self {
            checkpoint,
            config: config.model,
            weights: config.weights,
            naming,
        })
    }

    /// The names under which the checkpoint holds its tensors.
    #[must_use]
    pub const fn naming(&self) -> Naming {
        self.naming
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
        let name = self.naming.name(role, layer).unwrap_or_default();
        find(self.checkpoint, &name, Vec::new)
    }

    fn packed(&self, spec: &TensorSpec) -> Result<(Codes<'_>, f32), ConvertError> {
        let tensor = self.tensor(spec.role, spec.layer)?;
        let name = scale_name(&tensor.info.name);
        let scale = read_scale(find(self.checkpoint, &name, || vec![1])?)?;
        // The shape of the source's tensor: the halves of kv_b_proj come from one.
        let (rows, cols) = (ROWS_PER_BYTE * tensor.info.shape[0], tensor.info.shape[1]);
        let rows = PackedRows::new(tensor, rows, cols)?;
        Ok((Box::new(rows), scale))
    }

    fn quantized(
        &self,
        spec: &TensorSpec,
        arithmetic: Arithmetic,
    ) -> Result<(Codes<'_>, f32), ConvertError> {
        let (rows, shape, _) = self.dense(spec)?;
        let rows = QuantizedRows::new(rows, shape, arithmetic)?;
        let scale = rows.scale();
        Ok((Box::new(rows), scale))
    }

    fn dequantized(&self, spec: &TensorSpec) -> Result<(Codes<'_>, f32), ConvertError> {
        let (rows, shape, name) = self.dense(spec)?;
        let rows = DequantizedRows::new(rows, shape, name)?;
        let scale = rows.scale();
        Ok((Box::new(rows), scale))
    }

    /// A matrix of floats as it is stored, its stored shape, and its name.
    fn dense(
        &self,
        spec: &TensorSpec,
    ) -> Result<(StoredRows<'c>, (usize, usize), &'c str), ConvertError> {
        let tensor = self.tensor(spec.role, spec.layer)?;
        let (rows, cols) = (tensor.info.shape[0], tensor.info.shape[1]);
        let stored = StoredRows::new(tensor, cols)?;
        Ok((stored, (rows, cols), &tensor.info.name))
    }
}

type Codes<'c> = Box<dyn CodeRows + 'c>;

impl Source for CheckpointSource<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn ternary(&self, spec: &TensorSpec) -> Result<TernaryGroups<'_>, ConvertError> {
        let (codes, scale) = match self.weights {
            WeightForm::Packed(_) => self.packed(spec)?,
            WeightForm::Masters | WeightForm::Undecided => self.quantized(spec, Arithmetic::F32)?,
            WeightForm::MastersBf16 => self.quantized(spec, Arithmetic::BF16)?,
            WeightForm::Dequantised => self.dequantized(spec)?,
        };
        Ok(TernaryGroups::new(codes, scale, &self.config, spec))
    }

    fn rows(&self, spec: &TensorSpec) -> Result<Box<dyn WeightRows + '_>, ConvertError> {
        let tensor = self.tensor(spec.role, spec.layer)?;
        Ok(Box::new(StoredRows::new(tensor, spec.cols)?))
    }
}

/// The names of a family, behind the word that a saved training state puts before them.
fn naming(checkpoint: &Checkpoint, family: Family) -> Naming {
    const STATE: &str = "model_state_dict.";
    let wrapped = checkpoint.names().next().is_some()
        && checkpoint.names().all(|name| name.starts_with(STATE));
    match wrapped {
        true => family.naming().under(STATE),
        false => family.naming(),
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
