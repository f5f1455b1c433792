"""So that `accelerate launch -m scaling.training` starts `scale-train` in several processes."""

from scaling.training.cli import main

main()
