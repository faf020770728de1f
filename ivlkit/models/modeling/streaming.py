"""A frozen vision tower that stays in the host's memory: its layers visit the GPU one after the other.

Two buffers on the GPU hold a layer's weights each. While one layer computes, a stream of its own copies the next one's
into the other buffer. All tiles go through a layer before the next comes, some at a time, so that the weights cross
the bus once a pass, and no more than a few tiles' activations are alive.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.func import functional_call
from transformers.modeling_outputs import BaseModelOutput

from ...errors import RecipeError

STREAMED_TILES = 8  # that a layer computes at once: 0.4 GiB of the 6B tower's inner values
SLOTS = 2
ALIGNMENT = 128  # values: each tensor of a buffer begins where matrix kernels like it


def stream_tower(model):
    """Take the layers of a loaded model's frozen tower to the host's memory; a second time changes nothing.

    Args: model: a `ReleasedInternVLForConditionalGeneration`.
    Raises: RecipeError for a tower that trains, or of which another layer than the last is read.
    """
    if not model.vision_is_frozen:
        raise RecipeError("vision_offload: tensors of the vision tower train; expected a frozen one; freeze it first")
    if model.config.vision_feature_layer != -1:
        raise RecipeError(
            f"vision_offload: config.json reads layer {model.config.vision_feature_layer} of the tower; expected the "
            "last (select_layer -1); set vision_offload=false"
        )
    tower = model.model.vision_tower
    if not isinstance(tower.encoder, StreamedEncoder):
        tower.encoder = StreamedEncoder(tower.encoder.layer)
        model.sees_all_tiles = True


def leave_out_of_ddp(model):
    """DDP wants all parameters on one kind of device, and need not look at those that stay on the host."""
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, StreamedEncoder))
    names = [name for name, _ in model.named_parameters() if name.startswith(prefixes)]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


class StreamedEncoder(nn.Module):
    """In place of transformers' encoder, with the same layers under the same names.

    Their parameters are those on the host, during a pass too. `.to()` of a model leaves them there; a pass computes
    where its input is.
    """

    def __init__(self, layers):
        super().__init__()
        self.layer = layers
        self.places = _places(layers)
        self.packed = [_pack(layer, self.places) for layer in layers]
        self.buffers = None  # on the device of the latest pass

    def forward(self, hidden_states):
        """Hidden states [T, P, C] after the last layer, as transformers' encoder gives them."""
        if self.buffers is None or self.buffers.device != hidden_states.device:
            self.buffers = Buffers(self.packed[0], hidden_states.device)
        self.buffers.begin()
        self.buffers.fetch(0, self.packed[0])
        for number, layer in enumerate(self.layer):
            if number + 1 < len(self.layer):
                self.buffers.fetch(number + 1, self.packed[number + 1])
            with self.buffers.reading(number) as flat:
                weights = _views(flat, self.places)
                parts = hidden_states.split(STREAMED_TILES)
                hidden_states = torch.cat([functional_call(layer, weights, (tiles,)) for tiles in parts])
        return BaseModelOutput(last_hidden_state=hidden_states)

    def _apply(self, fn, recurse=True):
        """What `.to()` calls: nothing moves. Raises: TypeError for another dtype, of which the buffers are not."""
        dtype = self.packed[0].dtype
        wanted = fn(torch.empty(0, dtype=dtype)).dtype
        if wanted != dtype:
            raise TypeError(f"a streamed vision tower of {dtype} to become {wanted}; expected no change; load it so")
        return self


class Buffers:
    """Two buffers on a device, filled in turns. On a CPU everything happens at once, in the same order."""

    def __init__(self, like, device):
        self.device = device
        with torch.inference_mode(False):  # for passes outside of it too
            self.flats = [torch.empty_like(like, device=device) for _ in range(SLOTS)]
        self.lane = CudaLane(device) if device.type == "cuda" else Lane()

    def begin(self):
        """A pass starts: all that reads the buffers has been asked for before."""
        self.lane.begin(self.flats)

    def fetch(self, number, packed):
        """Copy the weights of layer `number`, over those of the layer two before, once that has been computed."""
        slot = number % SLOTS
        with self.lane.filling(slot):
            self.flats[slot].copy_(packed, non_blocking=True)

    @contextmanager
    def reading(self, number):
        """The weights of layer `number`, once they are there; at the end the buffer may be filled again."""
        slot = number % SLOTS
        self.lane.wait_until_filled(slot)
        yield self.flats[slot]
        self.lane.mark_read(slot)


class Lane:
    """Copies in the order of the program."""

    def begin(self, flats):
        """Nothing: no copy is under way."""

    def filling(self, slot):
        """A context in which a copy is made."""
        return nullcontext()

    def wait_until_filled(self, slot):
        """Nothing: the copy was made at once."""

    def mark_read(self, slot):
        """Nothing: the layer was computed at once."""


class CudaLane:
    """Copies on a stream of their own; events keep them and the computing stream from overtaking each other."""

    def __init__(self, device):
        self.device, self.side = device, torch.cuda.Stream(device)
        self.filled, self.read = ([torch.cuda.Event() for _ in range(SLOTS)] for _ in range(2))

    def begin(self, flats):
        """The buffers' memory may have been another tensor's, and a pass that failed may still read them."""
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        for flat in flats:
            flat.record_stream(self.side)  # else freed buffers could be given away during a copy

    @contextmanager
    def filling(self, slot):
        """The copy waits for the layer that last read the buffer; one that was never read waits for nothing."""
        self.side.wait_event(self.read[slot])
        with torch.cuda.stream(self.side):
            yield
        self.filled[slot].record(self.side)

    def wait_until_filled(self, slot):
        """The computing stream waits, not this process."""
        torch.cuda.current_stream(self.device).wait_event(self.filled[slot])

    def mark_read(self, slot):
        """The buffer may be filled again once the computing stream has come so far."""
        self.read[slot].record(torch.cuda.current_stream(self.device))


def _places(layers):
    """{parameter: (its place in the flat buffer, its shape)} of every layer, the same in all."""
    shapes = [{name: (value.shape, value.dtype) for name, value in layer.named_parameters()} for layer in layers]
    assert all(each == shapes[0] for each in shapes), "layers of unlike shapes share no buffer"
    assert len({dtype for _, dtype in shapes[0].values()}) == 1, "values of unlike kinds share no buffer"
    places, begin = {}, 0
    for name, (shape, _) in shapes[0].items():
        places[name] = (begin, shape)
        begin += padded(shape.numel())
    return places


def padded(count):
    """Values that a tensor of `count` takes of a buffer: 256 for 200."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def _pack(layer, places):
    """The layer's values in one flat tensor on the host, pinned where there is a GPU; its parameters look into it."""
    parameters = dict(layer.named_parameters())
    size = sum(padded(value.numel()) for value in parameters.values())
    dtype = next(iter(parameters.values())).dtype
    flat = torch.zeros(size, dtype=dtype, pin_memory=torch.cuda.is_available())
    for name, view in _views(flat, places).items():
        parameters[name].data = view.copy_(parameters[name].data)
    return flat


def _views(flat, places):
    """{parameter: its part of a flat tensor, in its shape}."""
    return {name: flat[begin : begin + shape.numel()].view(shape) for name, (begin, shape) in places.items()}
