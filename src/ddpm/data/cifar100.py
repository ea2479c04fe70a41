"""CIFAR-100: 60,000 colour images, 32x32 pixels (Krizhevsky 2009)."""

from torchvision import datasets

from ddpm.data.cifar import CIFAR

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR100(CIFAR):
    """50,000 training and 10,000 test images, shape (3, 32, 32), 256 levels, 100 (fine) classes.

    Args:
        root: the folder that holds cifar-100-python.
        flip: mirror training images at random.
    """

    shape = (3, 32, 32)
    classes = tuple(_CLASSES.split())
    dataset = datasets.CIFAR100
    remedy = "put cifar-100-python.tar.gz (or its folder cifar-100-python) under {root}"
