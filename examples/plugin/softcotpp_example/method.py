"""A method whose thoughts come from anywhere: here, tokens of the question, picked at random for each latent path."""

import zlib

import torch

import softcotpp as sc


class QuestionWords(sc.Method):
    name = "question-words"
    title = "Question words"
    traits = (sc.Trait.PATHS,)

    def __init__(self, surroundings, scale=1.0):  # scale: of `--method-args "scale=0.5"`
        super().__init__(surroundings)
        self.scale = scale
        self.embed = surroundings.backbone.model.get_input_embeddings()

    @torch.no_grad()
    def thoughts(self, question):
        """[N, L, D]; path k is the same however many paths there are."""
        num_paths, num_tokens = self.surroundings.num_paths, self.surroundings.soft_tokens
        prompt = torch.tensor(self.surroundings.prompt(question).prefix)
        stream = torch.Generator().manual_seed(zlib.crc32(question.id.encode()) + self.surroundings.config.seed)
        picked = prompt[torch.randint(len(prompt), (num_paths, num_tokens), generator=stream)]
        return self.scale * self.embed(picked.to(self.embed.weight.device)).float()
