"""The names that scripts for TinyNeuralNetwork's NetAdapt import: `tinynn` becomes `fxprune.tinynn`, and nothing else.

    from fxprune.tinynn.prune import NetAdaptPruner
    from fxprune.tinynn.util.cifar10 import get_dataloader, train_one_epoch, validate
    from fxprune.tinynn.util.train_util import DLContext, get_device, train

`get_dataloader` here returns two loaders, as those scripts expect; the second holds selection data, split off the
training images. `fxprune.data` has the test images too.
"""
