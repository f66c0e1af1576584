//! The weight passes of a decode step, alone.
//!
//! What a step must read at least is its weights. Timed without the rest of the step, their passes
//! can be held against a loop that only reads as many bytes.

use crate::error::RunError;
use crate::forward::Stage;
use crate::session::{Chunk, Session, Want};

/// The stages of a block that read its weights. The halves of a latent model's `kv_b_proj` are read
/// by attention, head by head, and are not among them.
const PASSES: [Stage; 4] = [Stage::Qkv, Stage::O, Stage::GateUp, Stage::Down];

impl<'w> Session<'_, 'w, '_> {
    /// Runs the projections of every block and the head for one token, over fixed activations, and
    /// returns the head's logits. They depend on the output and down projections of every block.
    ///
    /// The sequence stays as it is; [`logits`](Self::logits) are overwritten.
    ///
    /// # Errors
    ///
    /// A chunk is in progress, or a value is not finite.
    pub fn weight_pass(&mut self) -> Result<&[f32], RunError> {
        if self.is_busy() {
            return Err(RunError::Busy);
        }
        let model = self.model();
        let mut chunk = Chunk::new(model, 1, Want::Last);
        self.fix_inputs(&chunk);
        for layer in 0..model.config().n_layers {
            (chunk.layer, chunk.block) = (layer, model.block(layer));
            let mut forward = self.forward(&chunk);
            for stage in PASSES {
                forward.run(stage, 0..forward.units(stage))?;
            }
        }
        let mut forward = self.forward(&chunk);
        for stage in [Stage::HeadIn, Stage::Head] {
            forward.run(stage, 0..forward.units(stage))?;
        }
        Ok(self.logits())
    }

    /// Codes of both signs, and an empty residual stream.
    fn fix_inputs(&mut self, chunk: &Chunk<'w>) {
        let scratch = self.forward(chunk).scratch;
        for (i, code) in scratch.codes.iter_mut().enumerate() {
            *code = (i * 37 % 255) as u8 as i8;
        }
        scratch.act_scales.fill(1.0);
        scratch.residual.fill(0.0);
    }
}
