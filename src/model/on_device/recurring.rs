//! Recurrences on a device: what mixes tokens otherwise than attention does.

use crate::device::{DeviceConv, DeviceError, DeviceSlice};

use super::super::parts::{ConvWeights, Recurrence};
use super::delta_net::{GatedNet, KdaNet};
use super::lightning::LightningNet;
use super::mamba::ChannelScanning;
use super::mamba2::Scanning;
use super::short_conv::Convolving;
use super::states::States;
use super::{Step, Stop, There};

/// A recurrence that the device does.
pub(super) trait Recurring {
    /// The slots of its states: two at most, one behind the other.
    fn slots(&self) -> Vec<usize>;

    /// The recurrence of `cur` to `out`, which may be the same: as the steps of the
    /// [`Mixer`](super::super::parts::Mixer), with the same nodes. The output's node goes to
    /// [`Run::cur`](super::super::run::Run).
    fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        states: &States,
        out: &DeviceSlice,
    ) -> Result<(), Stop>;
}

/// Where the device can do it and has the weights.
pub(super) fn find<'m>(there: There<'_>, part: Recurrence<'m>) -> Option<Box<dyn Recurring + 'm>> {
    Some(match part {
        Recurrence::ShortConv(part) => Box::new(Convolving::find(there, part)?),
        Recurrence::Mamba(part) => Box::new(ChannelScanning::find(there, part)?),
        Recurrence::Mamba2(part) => Box::new(Scanning::find(there, part)?),
        Recurrence::DeltaNet(part) => Box::new(GatedNet::find(there, part)?),
        Recurrence::Kda(part) => Box::new(KdaNet::find(there, part)?),
        Recurrence::Lightning(part) => Box::new(LightningNet::find(there, part)?),
    })
}

/// The weights of a convolution on the device.
pub(super) fn conv_there(step: &Step<'_, '_>, conv: &ConvWeights) -> Result<DeviceConv, DeviceError> {
    let conv = conv.conv(false);
    let weight = step.there.constant(conv.weight)?;
    let bias = conv.bias.map(|bias| step.there.constant(bias)).transpose()?;
    Ok(DeviceConv { channels: conv.channels, weight, bias })
}
