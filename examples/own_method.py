"""A method of your own: the backbone thinks in latent steps, feeding its last state back as its next input.

scale-run --method examples/own_method.py --method-args "noise=0.1" --latent-paths 4 --limit 4
"""

import torch

from scaling.methods.kinds import Trait


class LatentSteps:
    name = "latent-steps"  # of folders
    title = "Latent steps"  # in reports
    traits = (Trait.PATHS, Trait.LOCAL)  # several latent paths; runs the backbone's weights in this process

    def __init__(self, surroundings, noise=0.05):
        self.surroundings, self.noise = surroundings, noise
        self.backbone = surroundings.backbone
        self.flops_per_slot = self.backbone.costs.forward(1)

    def thoughts(self, question):
        """[N, L, D]: L latent steps on each of N paths, which share the keys and values of the question."""
        model, num_paths = self.backbone.model, self.surroundings.num_paths
        ids = torch.tensor([self.surroundings.prompt(question).prefix], device=model.device)
        out = model(input_ids=ids, use_cache=True, output_hidden_states=True)
        cache = out.past_key_values
        cache.batch_repeat_interleave(num_paths)
        state = out.hidden_states[-1][:, -1:].expand(num_paths, -1, -1)
        generator = torch.Generator().manual_seed(self.surroundings.config.seed)
        start = torch.randn(state.shape, generator=generator).to(state)  # what tells the paths apart
        state = state + self.noise * state.std(-1, keepdim=True) * start
        steps = []
        for _ in range(self.surroundings.soft_tokens):
            size = state.float().pow(2).mean(-1, keepdim=True).sqrt()
            steps.append((state * self.backbone.embedding_scale() / size).to(state))
            out = model(inputs_embeds=steps[-1], past_key_values=cache, use_cache=True, output_hidden_states=True)
            state = out.hidden_states[-1]
        return torch.cat(steps, dim=1)
