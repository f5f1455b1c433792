"""Makes `accelerate launch -m scaling.training` start `scale-train` in several processes."""

from scaling.training.cli import main

main()
