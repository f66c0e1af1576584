//! Checkpoints that do not say whether they are ternary: the weights tell.
//!
//! A plain Llama checkpoint may be a ternary model written out as floats, or a model that was never
//! trained with ternary weights. The first rows of its first projection decide: values -a, 0 and a of
//! one a are codes, and every other matrix must then be like it, which is checked as it is read.

use bitnet_formats::TensorRole;

use crate::checkpoint::Checkpoint;
use crate::config_json::CheckpointConfig;
use crate::error::ConvertError;
use crate::family::WeightForm;
use crate::groups::one_size;
use crate::rows::{StoredRows, WeightRows};

/// What to do with weights that are not ternary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenseWeights {
    /// Refuse them.
    #[default]
    Refuse,
    /// Take them for masters that onebitllms quantises in bf16 arithmetic.
    OneBitLlms,
    /// Quantise them as masters, whatever they are.
    ForceTernarise,
}

impl DenseWeights {
    const fn option(self) -> &'static str {
        match self {
            Self::Refuse => "",
            Self::OneBitLlms => "--masters onebitllms",
            Self::ForceTernarise => "--force-ternarise",
        }
    }
}

/// Decides [`WeightForm::Undecided`]; leaves every other form as it is.
///
/// # Errors
///
/// The weights are not ternary and are to be refused, or an option is given that does not apply.
pub fn decide(
    checkpoint: &Checkpoint,
    config: &mut CheckpointConfig,
    dense: DenseWeights,
) -> Result<(), ConvertError> {
    let weights = match config.weights {
        WeightForm::Undecided => probe(checkpoint, config, dense)?,
        decided => decided,
    };
    let applies = matches!(
        (dense, weights),
        (DenseWeights::Refuse, _)
            | (DenseWeights::OneBitLlms, WeightForm::MastersBf16)
            | (DenseWeights::ForceTernarise, WeightForm::Masters)
    );
    if !applies {
        return Err(ConvertError::OptionUnused {
            option: dense.option(),
            weights: weights.name(),
        });
    }
    config.weights = weights;
    config.model.weight_scale = weights.weight_scale();
    Ok(())
}

/// Rows that are looked at.
const ROWS: usize = 16;
/// Inputs that share a scale in the ternary models that have group scales.
const GROUP: usize = 128;

fn probe(
    checkpoint: &Checkpoint,
    config: &CheckpointConfig,
    dense: DenseWeights,
) -> Result<WeightForm, ConvertError> {
    let (rows, cols) = config.model.shape(TensorRole::Q);
    let name = config.family.naming().name(TensorRole::Q, Some(0));
    let name = name.unwrap_or_default();
    let tensor = checkpoint.tensor(&name);
    let tensor = tensor.filter(|tensor| tensor.info.shape == [rows, cols]);
    let Some(tensor) = tensor else {
        // A source made of this checkpoint says what is missing.
        return Ok(WeightForm::Masters);
    };
    let mut values = vec![0.0; ROWS.min(rows) * cols];
    StoredRows::new(tensor, cols)?.read(0, &mut values)?;
    if one_size(&values, 0.0).is_ok() {
        return Ok(WeightForm::Dequantised);
    }
    match dense {
        DenseWeights::OneBitLlms => Ok(WeightForm::MastersBf16),
        DenseWeights::ForceTernarise => Ok(WeightForm::Masters),
        DenseWeights::Refuse if has_group_scales(&values, cols) => Err(ConvertError::GroupScales {
            tensor: name,
            group: GROUP,
        }),
        DenseWeights::Refuse => Err(ConvertError::Dense {
            found: sample(&values),
            tensor: name,
        }),
    }
}

fn has_group_scales(values: &[f32], cols: usize) -> bool {
    let ternary = |group: &[f32]| one_size(group, 0.0).is_ok();
    cols.is_multiple_of(GROUP) && values.chunks_exact(GROUP).all(ternary)
}

/// The first values that differ in size, for a message.
fn sample(values: &[f32]) -> String {
    let mut sizes: Vec<f32> = Vec::new();
    for value in values.iter().map(|v| v.abs()).filter(|v| *v != 0.0) {
        if sizes.len() < 3 && !sizes.contains(&value) {
            sizes.push(value);
        }
    }
    let sizes: Vec<_> = sizes.iter().map(f32::to_string).collect();
    format!("values of sizes {} and more", sizes.join(", "))
}
